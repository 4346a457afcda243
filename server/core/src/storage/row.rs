//! Structs that are read from rows.

/// Declares a struct whose fields are named as the columns, and reads it from the rows of both
/// databases. Another such struct that is read from the same row is named behind it.
///
/// In place of sqlx's derive: its procedural macros compile sqlx with both drivers and SQLite a
/// second time, for the compiler, which took a tenth of every build.
///
/// ```
/// hub_core::row! {
///     struct Counted {
///         name: String,
///         events: i64,
///     }
/// }
/// ```
#[macro_export]
macro_rules! row {
    (
        $(#[$of:meta])* $seen:vis struct $name:ident {
            $($(#[$doc:meta])* $field_seen:vis $field:ident: $type:ty),* $(,)?
        } $(and $part:ident: $part_type:ty)?
    ) => {
        $(#[$of])*
        $seen struct $name {
            $($part: $part_type,)?
            $($(#[$doc])* $field_seen $field: $type,)*
        }

        impl<'r, R> sqlx::FromRow<'r, R> for $name
        where
            R: sqlx::Row,
            for<'n> &'n str: sqlx::ColumnIndex<R>,
            $($part_type: sqlx::FromRow<'r, R>,)?
            $($type: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,)*
        {
            fn from_row(row: &'r R) -> sqlx::Result<Self> {
                Ok(Self {
                    $($part: sqlx::FromRow::from_row(row)?,)?
                    $($field: row.try_get(stringify!($field).trim_start_matches("r#"))?,)*
                })
            }
        }
    };
}
