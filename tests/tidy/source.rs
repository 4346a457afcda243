//! The files of the repository, and Rust as tokens: texts and comments are no code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Folders with nothing of ours in them.
const FOREIGN: &[&str] = &["target", ".git", ".tools", "node_modules"];

/// A file, by its path from the root.
pub struct File {
    pub path: String,
    pub text: String,
}

/// A word, sign or literal of Rust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
    /// Only compiled for tests.
    pub test: bool,
    /// A name or keyword.
    pub word: bool,
}

/// A function: its name and the lines from `fn` to its last brace.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub first: usize,
    pub last: usize,
}

/// A file of Rust.
pub struct Source {
    pub path: String,
    pub text: String,
    pub tokens: Vec<Token>,
    pub functions: Vec<Function>,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().to_owned()
}

/// All files with these endings, sorted; `""` = names without an ending.
pub fn files(endings: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    walk(&root(), &root(), endings, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "{endings:?}");
    found
}

fn walk(root: &Path, folder: &Path, endings: &[&str], found: &mut Vec<File>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let ending = path
            .extension()
            .map_or("", |ending| ending.to_str().unwrap());
        if path.is_dir() {
            if !FOREIGN.contains(&name) {
                walk(root, &path, endings, found);
            }
        } else if endings.contains(&ending)
            && let Ok(text) = fs::read_to_string(&path)
        {
            let path = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            found.push(File { path, text });
        }
    }
}

/// All of our Rust, read once: it takes seconds.
pub fn sources() -> &'static [Source] {
    static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(read);
    &SOURCES
}

/// Whole files that a `#[cfg(test)] mod` names are test code, like the tests.
fn read() -> Vec<Source> {
    let mut sources: Vec<Source> = files(&["rs"])
        .into_iter()
        .map(|file| Source::parse(&file.path, &file.text))
        .collect();
    let modules: BTreeSet<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let inside = |module: &String| {
            let rest = source.path.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        if source.is_test_file() || modules.iter().any(inside) {
            source.tokens.iter_mut().for_each(|token| token.test = true);
        }
    }
    sources
}

impl Source {
    /// Reads a file.
    pub fn parse(path: &str, text: &str) -> Source {
        let parsed: TokenStream = text
            .parse()
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
            tokens: Vec::new(),
            functions: Vec::new(),
        };
        source.read(parsed, false);
        source
    }

    /// Tests, benchmarks, examples and build scripts may end with a panic.
    fn is_test_file(&self) -> bool {
        let path = &self.path;
        let parts = ["tests/", "proto/tests/", "proto/build/", "client/examples/"];
        parts.iter().any(|part| path.starts_with(part)) || path.ends_with("build.rs")
    }

    /// Paths without ending of the files that `#[cfg(test)] mod name;` names.
    fn test_modules(&self) -> Vec<String> {
        let (folder, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let folder = match name {
            "mod.rs" | "lib.rs" | "main.rs" => folder.to_owned(),
            _ => format!("{folder}/{}", name.trim_end_matches(".rs")),
        };
        let named = self
            .tokens
            .windows(3)
            .filter(|three| three[0].test && three[0].text == "mod" && three[2].text == ";");
        named
            .map(|three| format!("{folder}/{}", three[1].text))
            .collect()
    }

    fn read(&mut self, stream: TokenStream, test: bool) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        let mut item = test;
        for (at, tree) in trees.iter().enumerate() {
            item |= is_test_attribute(&trees[at..]);
            let next = trees.get(at + 1);
            if let (TokenTree::Ident(word), Some(TokenTree::Ident(name))) = (tree, next)
                && word == "fn"
            {
                self.function(name.to_string(), word.span().start().line, &trees[at..]);
            }
            self.push(tree, item);
            let ends = match tree {
                TokenTree::Punct(sign) => sign.as_char() == ';',
                TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                _ => false,
            };
            if ends {
                item = test;
            }
        }
    }

    fn push(&mut self, tree: &TokenTree, test: bool) {
        let mut push = |text: String, line: usize, word: bool| {
            self.tokens.push(Token {
                text,
                line,
                test,
                word,
            });
        };
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open.to_owned(), group.span_open().start().line, false);
                self.read(group.stream(), test);
                let line = group.span_close().end().line;
                let (text, word) = (close.to_owned(), false);
                self.tokens.push(Token {
                    text,
                    line,
                    test,
                    word,
                });
            }
            TokenTree::Ident(word) => push(word.to_string(), word.span().start().line, true),
            TokenTree::Punct(sign) => push(sign.to_string(), sign.span().start().line, false),
            TokenTree::Literal(value) => push(value.to_string(), value.span().start().line, false),
        }
    }

    fn function(&mut self, name: String, first: usize, trees: &[TokenTree]) {
        for tree in trees {
            match tree {
                TokenTree::Punct(sign) if sign.as_char() == ';' => return,
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    let last = body.span_close().end().line;
                    self.functions.push(Function { name, first, last });
                    return;
                }
                _ => {}
            }
        }
    }
}

/// `#[cfg(test)]`, `#[test]`, `#[tokio::test(…)]`.
fn is_test_attribute(trees: &[TokenTree]) -> bool {
    let [TokenTree::Punct(sign), TokenTree::Group(group), ..] = trees else {
        return false;
    };
    let words: Vec<String> = group
        .stream()
        .into_iter()
        .map(|tree| tree.to_string())
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    sign.as_char() == '#'
        && match words[..] {
            ["test"] | ["tokio", ":", ":", "test", ..] => true,
            ["cfg", condition] => condition.replace(' ', "") == "(test)",
            _ => false,
        }
}

#[test]
fn test_code_ends_with_its_item() {
    let text = "#[cfg(test)]\nmod tests { fn a() { b } }\nfn c() {}\n#[cfg(test)] mod d;\ne!();";
    let source = Source::parse("server/x/src/lib.rs", text);
    let words = source.tokens.iter().filter(|token| token.word);
    let tested: Vec<_> = words
        .map(|token| (token.text.as_str(), token.test))
        .collect();
    let of = |name| tested.iter().find(|(text, _)| *text == name).unwrap().1;
    assert!(of("b") && of("d") && !of("c") && !of("e"), "{tested:?}");
    assert_eq!(source.test_modules(), ["server/x/src/d"]);
}

#[test]
fn functions_are_found_in_macros_too() {
    let text = "both! {\n async fn a(hub: Hub) {\n  let f: fn(u8);\n }\n}\ntrait B { fn b(); }";
    let functions = Source::parse("x.rs", text).functions;
    let name = "a".to_owned();
    assert_eq!(
        functions,
        [Function {
            name,
            first: 2,
            last: 4
        }]
    );
}

#[test]
fn the_tests_of_a_crate_are_test_code_and_the_crate_is_not() {
    let sources = sources();
    let is_test = |path: &str| {
        let found = sources.iter().find(|source| source.path == path);
        found.unwrap().tokens.iter().all(|token| token.test)
    };
    assert!(is_test("tests/main.rs"));
    assert!(is_test("client/src/fake_hub.rs"));
    assert!(is_test("server/core/src/journal/crash_tests.rs"));
    assert!(is_test("server/api_keys/src/tests/keys.rs"));
    assert!(!is_test("server/api_keys/src/keys.rs"));
    assert!(!is_test("server/core/src/cursor.rs"));
}
