//! THE list of settings. Each is a field of one of the `…Args`; flags, variables, keys of the file,
//! `hub config …` and docs/configuration.md all come from here.

use std::any::TypeId;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Args};

use super::dev::DemoArgs;
use super::limits::LimitArgs;
use super::server::{ListenArgs, LogArgs};
use super::store::DatabaseArgs;
use super::tls::TlsArgs;
use super::{KeyAge, Length, Size};

/// All settings, in the order of the reference.
#[derive(Debug, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    pub listening: ListenArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub demo: DemoArgs,
}

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A number.
    Number,
    /// `64MiB`.
    Size,
    /// `10s`.
    Length,
    /// A file or folder.
    Path,
    /// One of some words.
    Choice,
    /// Anything.
    Text,
}

/// One setting.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Key in the file, e.g. `drain_timeout`.
    pub key: String,
    /// Flag without its dashes, e.g. `drain-timeout`.
    pub flag: String,
    /// Variable, e.g. `HUB_DRAIN_TIMEOUT`.
    pub variable: String,
    /// What it looks like.
    pub kind: Kind,
    /// Its value unless it is set; none = it is not set.
    pub default: Option<String>,
    /// What it is about.
    pub heading: String,
    /// What it does.
    pub text: String,
    /// The words of a choice.
    pub choices: Vec<String>,
    arg: Arg,
}

/// All settings.
pub fn all() -> Vec<Setting> {
    let command = Settings::augment_args(clap::Command::new("settings"));
    command.get_arguments().map(Setting::of).collect()
}

/// The variable of a flag: `--data-dir` reads `HUB_DATA_DIR`.
pub fn variable(flag: &str) -> String {
    format!("HUB_{}", flag.to_uppercase().replace('-', "_"))
}

impl Setting {
    fn of(arg: &Arg) -> Setting {
        let flag = arg.get_long().unwrap_or_default().to_owned();
        let parser = arg.get_value_parser();
        let choices: Vec<String> = parser
            .possible_values()
            .filter(|_| parser.type_id() != TypeId::of::<bool>())
            .map(|values| values.map(|value| value.get_name().to_owned()).collect())
            .unwrap_or_default();
        let default = arg.get_default_values().first();
        let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
        if !text.ends_with('.') {
            text.push('.');
        }
        Setting {
            key: flag.replace('-', "_"),
            variable: variable(&flag),
            kind: kind(parser, &choices),
            default: default.map(|text| text.to_string_lossy().into_owned()),
            heading: arg.get_help_heading().unwrap_or("General").to_owned(),
            text,
            choices,
            flag,
            arg: arg.clone(),
        }
    }

    /// Whether the server takes this value.
    pub fn check(&self, value: &OsStr) -> Result<(), String> {
        let command = clap::Command::new("hub")
            .no_binary_name(true)
            .arg(self.arg.clone());
        let mut given = OsString::from(format!("--{}=", self.flag));
        given.push(value);
        let error = match command.try_get_matches_from([given]) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if let Some(cause) = error.source() {
            return Err(cause.to_string());
        }
        match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                Err(format!("write one of {}", valid.join(", ")))
            }
            _ => Err("this value cannot be used".to_owned()),
        }
    }

    /// The value as the file writes it.
    pub fn toml(&self, value: &str) -> String {
        let bare = match self.kind {
            Kind::Bool => true,
            Kind::Number | Kind::Size => {
                !value.is_empty() && value.bytes().all(|letter| letter.is_ascii_digit())
            }
            _ => false,
        };
        if bare {
            value.to_owned()
        } else {
            quoted(value)
        }
    }

    /// The value without what nobody should see.
    pub fn redacted(&self, value: &str) -> String {
        let secret = ["_key", "_secret", "_password", "_token"];
        if secret.iter().any(|end| self.key.ends_with(end)) {
            return REDACTED.to_owned();
        }
        without_password(value)
    }
}

/// Stands where a secret was.
const REDACTED: &str = "REDACTED";

/// `postgres://hub:secret@db/hub?password=secret` without the secrets.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = match rest.rfind('@') {
        // A password may hold the letters that end an authority.
        Some(at) if at >= end => rest.split_at(rest[at..].find('/').map_or(rest.len(), |n| at + n)),
        _ => rest.split_at(end),
    };
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => format!("{name}:{REDACTED}@{host}"),
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let Some((path, query)) = rest.split_once('?') else {
        return format!("{scheme}://{authority}{rest}");
    };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if name.contains("password") => format!("{name}={REDACTED}"),
        _ => pair.to_owned(),
    });
    let query = pairs.collect::<Vec<_>>().join("&");
    format!("{scheme}://{authority}{path}?{query}")
}

fn quoted(text: &str) -> String {
    let mut all = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => all.extend(['\\', letter]),
            letter if letter.is_control() => {
                all.push_str(&format!("\\u{:04X}", u32::from(letter)));
            }
            letter => all.push(letter),
        }
    }
    all.push('"');
    all
}

fn kind(parser: &clap::builder::ValueParser, choices: &[String]) -> Kind {
    let id = parser.type_id();
    let is = |kind: TypeId| id == kind;
    let numbers = [
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<f64>(),
        TypeId::of::<NonZeroUsize>(),
    ];
    if is(TypeId::of::<bool>()) {
        Kind::Bool
    } else if is(TypeId::of::<Size>()) {
        Kind::Size
    } else if is(TypeId::of::<Length>()) || is(TypeId::of::<KeyAge>()) {
        Kind::Length
    } else if is(TypeId::of::<PathBuf>()) {
        Kind::Path
    } else if numbers.into_iter().any(is) {
        Kind::Number
    } else if !choices.is_empty() {
        Kind::Choice
    } else {
        Kind::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("postgres://hub@db/hub", "postgres://hub@db/hub"),
            ("postgres://hub:pw@db/hub", "postgres://hub:REDACTED@db/hub"),
            (
                "postgres://hub:p@w@db/hub",
                "postgres://hub:REDACTED@db/hub",
            ),
            (
                "postgres://hub:p/w@db/hub",
                "postgres://hub:REDACTED@db/hub",
            ),
            (
                "postgres://db/hub?sslmode=require&password=pw",
                "postgres://db/hub?sslmode=require&password=REDACTED",
            ),
            ("sqlite:hub.db", "sqlite:hub.db"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn every_setting_has_a_text_and_a_default_that_it_takes() {
        let all = all();
        assert!(all.len() > 40, "{}", all.len());
        for setting in all {
            assert!(setting.text.len() > 5, "{}", setting.key);
            if let Some(default) = &setting.default {
                assert_eq!(setting.check(default.as_ref()), Ok(()), "{}", setting.key);
            }
        }
    }

    #[test]
    fn a_value_is_refused_with_what_to_write() {
        let all = all();
        let refused = |key: &str, value: &str| {
            let setting = all.iter().find(|setting| setting.key == key).unwrap();
            setting.check(value.as_ref()).unwrap_err()
        };
        assert!(refused("drain_timeout", "soon").contains("write it as 500ms"));
        assert!(refused("tail_bytes_max", "64MB").contains("64MiB"));
        assert!(refused("log_format", "xml").contains("auto, pretty, json"));
        assert!(refused("connections_max", "-1").contains("invalid digit"));
        for filter in ["info,=", "rpc=", "info,rpc=loud", "[rpc]=debug", "a b=info"] {
            assert!(
                refused("log_filter", filter).contains("not a filter"),
                "{filter}"
            );
        }
        let filter = all.iter().find(|setting| setting.key == "log_filter");
        for good in ["info", "info, sqlx=warn,", "rpc=off", "trace"] {
            assert_eq!(filter.unwrap().check(good.as_ref()), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_is_quoted_reads_the_same_in_toml() {
        let text = "a\"b\\c\nd\u{7f}é";
        let line = format!("key = {}", quoted(text));
        let table = toml::de::DeTable::parse(&line).unwrap();
        let value = table.get_ref().get("key").unwrap().get_ref();
        assert_eq!(value.as_str(), Some(text));
    }
}
