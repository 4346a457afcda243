//! The products of the suite: by slug for people, by number for what is compact.

use tonic::Code;

use crate::clock::Micros;
use crate::error::{Error, Result};
use crate::storage::{Db, Failure, Sql, Tx};

/// The slugs that every hub begins with, by number: the first one is number 1.
pub const SLUGS: [&str; 12] = [
    "psa", "crm", "books", "rmm", "security", "portal", "cmdb", "voice", "oncall", "hub", "defend",
    "backups",
];

/// Most products; a set of them is 32 bytes.
pub const PRODUCTS_MAX: usize = 256;

/// Longest slug, in characters.
pub const SLUG_CHARS_MAX: usize = 63;

/// Status that VerifyApiKey suggests for a rate limit, unless the product says otherwise.
pub const RATE_LIMITED_STATUS: u32 = 429;

/// Most edits between a slug and what was probably meant by it.
const TYPING_ERRORS_MAX: usize = 2;

/// Longest text that is compared with the slugs, in characters.
const COMPARED_MAX: usize = 32;

const LIST: Sql = Sql::same(
    "select product_no, product, display_name, base_urls, rate_limited_status, update_time, version
     from products order by product",
);
const PUT: Sql = Sql::same(
    "insert into products (product_no, product, display_name, base_urls, rate_limited_status,
        update_time, version)
     values ($1, $2, $3, $4, $5, $6, $7)
     on conflict (product_no) do update
     set display_name = excluded.display_name, base_urls = excluded.base_urls,
        rate_limited_status = excluded.rate_limited_status,
        update_time = excluded.update_time, version = excluded.version",
);

/// Every statement of this file, for the test that prepares them.
pub const STATEMENTS: &[Sql] = &[LIST, PUT];

/// A product's number; it never changes and is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductNo(u16);

impl ProductNo {
    /// From a number that a row has; `None` if no product can have it.
    pub fn new(number: i64) -> Option<ProductNo> {
        let number = u16::try_from(number).ok()?;
        (1..=PRODUCTS_MAX)
            .contains(&usize::from(number))
            .then_some(ProductNo(number))
    }

    /// As a row has it.
    pub fn get(self) -> i64 {
        i64::from(self.0)
    }

    /// True for the products that every hub begins with: tenants have them unless they say
    /// otherwise.
    pub fn is_of_the_suite(self) -> bool {
        usize::from(self.0) <= SLUGS.len()
    }
}

/// Some of the products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProductSet([u64; PRODUCTS_MAX / 64]);

impl ProductSet {
    /// The products that every hub begins with.
    pub fn of_the_suite() -> ProductSet {
        ProductSet([(1 << SLUGS.len()) - 1, 0, 0, 0])
    }

    /// Whether a product is one of them.
    pub fn contains(&self, product: ProductNo) -> bool {
        let (word, bit) = place(product);
        self.0.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// Puts a product in or out.
    pub fn set(&mut self, product: ProductNo, is_in: bool) {
        let (word, bit) = place(product);
        if let Some(bits) = self.0.get_mut(word) {
            *bits = if is_in { *bits | bit } else { *bits & !bit };
        }
    }
}

fn place(product: ProductNo) -> (usize, u64) {
    let at = usize::from(product.0 - 1);
    (at / 64, 1 << (at % 64))
}

/// A product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Its number.
    pub number: ProductNo,
    /// Its slug, e.g. `psa`.
    pub slug: String,
    /// What people call it.
    pub display_name: String,
    /// Its API base URLs; none = calls from any host are taken for it.
    pub base_urls: Vec<String>,
    /// Status that VerifyApiKey suggests for a rate limit: 429 or 403.
    pub rate_limited_status: u32,
    /// Last change.
    pub update_time: Micros,
    /// Rises with every change.
    pub version: i64,
}

/// All products at one moment, by slug.
#[derive(Debug, Clone, Default)]
pub struct Products(Vec<Product>);

crate::row! {
    struct Row {
        product_no: i64,
        product: String,
        display_name: String,
        base_urls: String,
        rate_limited_status: i64,
        update_time: Micros,
        version: i64,
    }
}

impl Row {
    fn read(self) -> Result<Product> {
        let damaged = |what: &str| Error::internal(format!("{what} of a product is damaged"));
        Ok(Product {
            number: ProductNo::new(self.product_no).ok_or_else(|| damaged("the number"))?,
            slug: self.product,
            display_name: self.display_name,
            base_urls: serde_json::from_str(&self.base_urls).map_err(|_| damaged("base_urls"))?,
            rate_limited_status: u32::try_from(self.rate_limited_status)
                .unwrap_or(RATE_LIMITED_STATUS),
            update_time: self.update_time,
            version: self.version,
        })
    }
}

impl Products {
    /// In any order.
    pub fn new(mut products: Vec<Product>) -> Products {
        products.sort_by(|one, other| one.slug.cmp(&other.slug));
        Products(products)
    }

    /// As they are in the database.
    pub async fn load(db: &Db) -> Result<Products> {
        Products::read(db.query(LIST).all().await?)
    }

    /// As they are for a transaction.
    pub async fn load_in(tx: &mut Tx) -> Result<Products> {
        Products::read(tx.query(LIST).all().await?)
    }

    fn read(rows: Vec<Row>) -> Result<Products> {
        let products = rows.into_iter().map(Row::read).collect::<Result<_>>()?;
        // Databases sort texts each in its own way.
        Ok(Products::new(products))
    }

    /// The product with this slug.
    pub fn find(&self, slug: &str) -> Option<&Product> {
        let at = self
            .0
            .binary_search_by(|product| product.slug.as_str().cmp(slug));
        at.ok().map(|at| &self.0[at])
    }

    /// The number of the product with this slug.
    pub fn number(&self, slug: &str) -> Option<ProductNo> {
        self.find(slug).map(|product| product.number)
    }

    /// The product with this number.
    pub fn by_number(&self, number: ProductNo) -> Option<&Product> {
        self.0.iter().find(|product| product.number == number)
    }

    /// All of them, by slug.
    pub fn iter(&self) -> std::slice::Iter<'_, Product> {
        self.0.iter()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A number that no product has; `None` if there are [`PRODUCTS_MAX`].
    pub fn next_number(&self) -> Option<ProductNo> {
        let last = self.0.iter().map(|product| product.number.get()).max();
        ProductNo::new(last.unwrap_or(0) + 1)
    }

    /// The product with this slug, or `PRODUCT_NOT_FOUND`.
    pub fn require(&self, slug: &str) -> Result<&Product> {
        self.find(slug).ok_or_else(|| self.not_found(slug))
    }

    /// `PRODUCT_NOT_FOUND`, with the slug that was probably meant.
    pub fn not_found(&self, slug: &str) -> Error {
        let slugs: Vec<&str> = self.0.iter().map(|product| &*product.slug).collect();
        let list = slugs.join(" ");
        let meant = nearest(slug, &slugs);
        let hint = match meant {
            Some(meant) => format!("Did you mean {meant}? The products are: {list}."),
            None => format!("Use one of: {list}."),
        };
        let message = format!("There is no product {slug:?}. {hint}");
        let error = Error::new(Code::NotFound, "hub.platform", "PRODUCT_NOT_FOUND", message)
            .with("product", slug);
        match meant {
            Some(meant) => error.with("didYouMean", meant),
            None => error,
        }
    }
}

/// Stores a product, new or changed.
pub async fn put(tx: &mut Tx, product: &Product) -> Result<()> {
    let base_urls = serde_json::to_string(&product.base_urls).map_err(Error::internal)?;
    let stored: Result<u64, Failure> = tx
        .query(PUT)
        .bind(product.number.get())
        .bind(product.slug.clone())
        .bind(product.display_name.clone())
        .bind(base_urls)
        .bind(i64::from(product.rate_limited_status))
        .bind(product.update_time)
        .bind(product.version)
        .execute()
        .await;
    stored?;
    Ok(())
}

/// Whether a text may be the slug of a product: a lower-case letter, then letters, digits, `-`.
pub fn is_slug(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.len() <= SLUG_CHARS_MAX
        && text.bytes().all(plain)
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
}

/// The slug that is at most two edits away, case and punctuation aside.
fn nearest<'a>(text: &str, slugs: &[&'a str]) -> Option<&'a str> {
    let plain: Vec<char> = text
        .chars()
        .filter(|c| c.is_alphanumeric())
        .take(COMPARED_MAX + 1)
        .flat_map(char::to_lowercase)
        .collect();
    if plain.is_empty() || plain.len() > COMPARED_MAX {
        return None;
    }
    let distances = slugs.iter().map(|slug| (edits(&plain, slug), *slug));
    // A short text is near to everything: at least half of it has to be right.
    let most = TYPING_ERRORS_MAX.min(plain.len() / 2);
    distances
        .filter(|(edits, _)| *edits <= most)
        .min_by_key(|(edits, _)| *edits)
        .map(|d| d.1)
}

/// Edits from one text to the other; two neighbours that were swapped are one edit.
fn edits(from: &[char], to: &str) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=from.len()).collect();
    let mut previous = None;
    for (above, wanted) in to.chars().enumerate() {
        let mut row = vec![above + 1];
        for (at, have) in from.iter().enumerate() {
            let replaced = last[at] + usize::from(*have != wanted);
            let mut least = replaced.min(last[at + 1] + 1).min(row[at] + 1);
            if at > 0 && Some(*have) == previous && from[at - 1] == wanted {
                least = least.min(before[at - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
        previous = Some(wanted);
    }
    last[from.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite() -> Products {
        let product = |(at, slug): (usize, &&str)| Product {
            number: ProductNo::new(at as i64 + 1).unwrap(),
            slug: (*slug).to_owned(),
            display_name: slug.to_uppercase(),
            base_urls: Vec::new(),
            rate_limited_status: RATE_LIMITED_STATUS,
            update_time: 0,
            version: 1,
        };
        Products::new(SLUGS.iter().enumerate().map(product).collect())
    }

    #[test]
    fn a_mistyped_slug_is_told_what_was_meant() {
        for (typed, meant) in [
            ("PSA", Some("psa")),
            ("on-call", Some("oncall")),
            ("potral", Some("portal")),
            ("pas", Some("psa")),
            ("backup", Some("backups")),
            ("book", Some("books")),
            ("", None),
            ("x", None),
            ("accounting", None),
            (&"a".repeat(100_000), None),
        ] {
            assert_eq!(nearest(typed, &SLUGS), meant, "{:.20}", typed);
        }
    }

    #[test]
    fn an_unknown_product_is_refused_with_the_list() {
        let products = suite();
        assert_eq!(products.require("psa").unwrap().number.get(), 1);
        let error = products.require("crmm").unwrap_err();
        assert_eq!(error.reason(), "PRODUCT_NOT_FOUND");
        assert!(error.message().contains("books"), "{}", error.message());
        let meant = error
            .metadata()
            .iter()
            .find(|(key, _)| *key == "didYouMean");
        assert_eq!(meant.map(|(_, slug)| slug.as_str()), Some("crm"));
    }

    #[test]
    fn products_are_found_by_slug_and_by_number() {
        let products = suite();
        for (at, slug) in SLUGS.iter().enumerate() {
            let number = products.number(slug).unwrap();
            assert_eq!(number.get(), at as i64 + 1);
            assert_eq!(products.by_number(number).unwrap().slug, *slug);
            assert!(number.is_of_the_suite() && ProductSet::of_the_suite().contains(number));
        }
        let next = products.next_number().unwrap();
        assert_eq!((next.get(), next.is_of_the_suite()), (13, false));
        assert!(!ProductSet::of_the_suite().contains(next));
    }

    #[test]
    fn a_set_holds_every_number_there_can_be() {
        let mut set = ProductSet::default();
        for number in [1, 64, 65, 255, PRODUCTS_MAX as i64] {
            let product = ProductNo::new(number).unwrap();
            assert!(!set.contains(product), "{number}");
            set.set(product, true);
            assert!(set.contains(product), "{number}");
            set.set(product, false);
            assert_eq!(set, ProductSet::default());
        }
        assert_eq!(ProductNo::new(0), None);
        assert_eq!(ProductNo::new(PRODUCTS_MAX as i64 + 1), None);
    }

    #[test]
    fn a_slug_is_short_and_plain() {
        for good in ["psa", "on-call", "a1", &"a".repeat(63)] {
            assert!(is_slug(good), "{good}");
        }
        for bad in [
            "",
            "PSA",
            "1a",
            "-a",
            "a b",
            "*",
            "a_b",
            "é",
            &"a".repeat(64),
        ] {
            assert!(!is_slug(bad), "{bad}");
        }
    }
}
