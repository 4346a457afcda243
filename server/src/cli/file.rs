//! The file with settings: TOML, one key for each, no tables.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::settings::{Kind, Setting};

/// Names further apart than this are not suggested.
const SUGGESTION_DISTANCE_MAX: usize = 4;

/// Something that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The setting, if it is known.
    pub key: String,
    /// What, and what to write instead.
    pub text: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Line and column of a file, from 1.
    File(PathBuf, usize, usize),
    /// A variable of the environment.
    Variable(String),
    /// A flag.
    Flag(String),
    /// The program.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path, line, column) => write!(f, "{}:{line}:{column}", path.display()),
            Place::Variable(name) => f.write_str(name),
            Place::Flag(flag) => write!(f, "--{flag}"),
            Place::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// A value that the server takes.
#[derive(Debug, Clone)]
pub struct Value {
    /// Key of the setting.
    pub key: String,
    /// The value as a flag would give it.
    pub text: String,
    /// Where it stands.
    pub place: Place,
}

/// What a file says.
#[derive(Debug, Default)]
pub struct Contents {
    /// What can be used.
    pub values: Vec<Value>,
    /// What cannot.
    pub problems: Vec<Problem>,
}

/// Reads a file.
pub fn read(path: &Path, settings: &[Setting]) -> Result<Contents, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(parse(&text, path, settings))
}

/// Reads the text of a file: all that can be used, and all problems.
pub fn parse(text: &str, path: &Path, settings: &[Setting]) -> Contents {
    let mut contents = Contents::default();
    let place = |span: Range<usize>| {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before
            .chars()
            .rev()
            .take_while(|letter| *letter != '\n')
            .count()
            + 1;
        Place::File(path.to_owned(), line, column)
    };
    let mut problem = |span: Range<usize>, key: &str, text: String| {
        contents.problems.push(Problem {
            place: place(span),
            key: key.to_owned(),
            text,
        });
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        problem(span, "", error.message().replace('\n', ", "));
    }
    for (name, value) in table.get_ref() {
        let key = name.get_ref().as_ref();
        let Some(setting) = settings.iter().find(|setting| setting.key == key) else {
            problem(name.span(), key, unknown(key, value.get_ref(), settings));
            continue;
        };
        let read = as_text(setting, value.get_ref())
            .and_then(|text| setting.check(text.as_ref()).map(|()| text));
        match read {
            Ok(text) => contents.values.push(Value {
                key: key.to_owned(),
                text,
                place: place(name.span()),
            }),
            Err(why) => problem(value.span(), key, format!("`{key}`: {why}")),
        }
    }
    let at = |problem: &Problem| match problem.place {
        Place::File(_, line, column) => (line, column),
        _ => (0, 0),
    };
    contents.problems.sort_by_key(at);
    contents
}

/// The value as a flag would give it.
fn as_text(setting: &Setting, value: &DeValue<'_>) -> Result<String, String> {
    match (setting.kind, value) {
        (Kind::Bool, DeValue::Boolean(on)) => Ok(on.to_string()),
        (Kind::Bool, _) => Err("write true or false, without quotes".to_owned()),
        (_, DeValue::String(text)) => Ok(text.to_string()),
        (Kind::Number | Kind::Size | Kind::Length, DeValue::Integer(number)) => {
            match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Ok(number.to_string()),
                Err(_) => Err("this number is too large".to_owned()),
            }
        }
        (_, other) => Err(format!("write it in quotes, not as {}", other.type_str())),
    }
}

fn unknown(key: &str, value: &DeValue<'_>, settings: &[Setting]) -> String {
    if value.is_table() {
        return format!("`{key}` is a table, and there are none: write all keys without one");
    }
    match nearest(key, settings) {
        Some(near) => format!("there is no setting `{key}`; did you mean `{near}`?"),
        None => format!("there is no setting `{key}`; `hub config default` lists them all"),
    }
}

/// The setting that was probably meant.
pub fn nearest<'a>(key: &str, settings: &'a [Setting]) -> Option<&'a str> {
    let key = key.to_lowercase().replace('-', "_");
    let key = key.strip_prefix("hub_").unwrap_or(&key);
    let distance = |setting: &&Setting| strsim::damerau_levenshtein(key, &setting.key);
    let near = settings.iter().min_by_key(distance)?;
    let far = SUGGESTION_DISTANCE_MAX.min(near.key.len() / 3);
    (distance(&near) <= far).then_some(near.key.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings;

    fn problems(text: &str) -> Vec<String> {
        let contents = parse(text, Path::new("hub.toml"), &settings::all());
        contents.problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_read_in_the_forms_that_people_write() {
        let text = "listen = \"127.0.0.1:1\"\ninsecure = true\nconnections_max = 1_000\n\
                    tail_bytes_max = \"128MiB\"\njson_bytes_max = 4096\n\n# more\n\
                    drain_timeout = '5s'\nlog_format = \"json\"\n";
        let contents = parse(text, Path::new("hub.toml"), &settings::all());
        assert_eq!(contents.problems, []);
        let mut values: Vec<_> = contents
            .values
            .iter()
            .map(|value| (value.key.as_str(), value.text.as_str()))
            .collect();
        values.sort_unstable();
        assert_eq!(
            values,
            [
                ("connections_max", "1000"),
                ("drain_timeout", "5s"),
                ("insecure", "true"),
                ("json_bytes_max", "4096"),
                ("listen", "127.0.0.1:1"),
                ("log_format", "json"),
                ("tail_bytes_max", "128MiB"),
            ]
        );
        let drain = contents
            .values
            .iter()
            .find(|value| value.key == "drain_timeout");
        assert_eq!(drain.unwrap().place.to_string(), "hub.toml:8:1");
    }

    #[test]
    fn all_problems_are_told_with_line_and_column() {
        let text = "drain_timout = \"5s\"\nrequest_timeout = \"soon\"\nlisten = 7070\n\
                    \n[limits]\nlisten = \"\"\n";
        assert_eq!(
            problems(text),
            [
                "hub.toml:1:1: there is no setting `drain_timout`; did you mean `drain_timeout`?",
                "hub.toml:2:19: `request_timeout`: write it as 500ms, 10s, 5m, 2h or 8d",
                "hub.toml:3:10: `listen`: write it in quotes, not as integer",
                "hub.toml:5:2: `limits` is a table, and there are none: write all keys without one",
            ]
        );
    }

    #[test]
    fn syntax_errors_do_not_hide_the_rest() {
        let told = problems("listen = \ninsecure = \"yes\"\ninsecure = true\nwhat = 1\n");
        assert!(
            told.iter().any(|line| line.starts_with("hub.toml:1:")),
            "{told:?}"
        );
        assert!(
            told.iter().any(|line| line.contains("no setting `what`")),
            "{told:?}"
        );
        assert!(told.len() >= 3, "{told:?}");
    }

    #[test]
    fn spellings_of_flags_and_variables_are_recognized() {
        let all = settings::all();
        assert_eq!(nearest("drain-timeout", &all), Some("drain_timeout"));
        assert_eq!(nearest("HUB_DATA_DIR", &all), Some("data_dir"));
        assert_eq!(nearest("tls_certfile", &all), Some("tls_cert_file"));
        assert_eq!(nearest("colour", &all), None);
    }
}
