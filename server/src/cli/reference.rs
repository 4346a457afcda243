//! The file with all defaults, and docs/configuration.md, made of the list of settings.

use std::fmt::Write;

use super::settings::{Kind, Setting};

/// Columns of a comment.
const COLUMNS: usize = 96;

const FILE_HEAD: &str = "\
# All settings of the hub with their defaults. A key is also a flag (`--drain-timeout`) and a
# variable (`HUB_DRAIN_TIMEOUT`); a flag wins over the variable, and the variable over this file.
# Check it by `hub config check FILE`. The file `hub.toml` in the folder where the hub is started
# is read by itself, any other by `--config FILE`.
";

const PAGE_HEAD: &str = "\
# Configuration

<!-- Made by `hub config reference`; a test fails when it differs. -->

Everything works without configuration. What is set is taken from, the first wins:

1. the flag, `--drain-timeout 5s`
2. the variable, `HUB_DRAIN_TIMEOUT=5s`
3. the file, `drain_timeout = \"5s\"`: `--config FILE`, `HUB_CONFIG`, or `hub.toml` in the folder
   where the hub is started
4. the default

The file is TOML without tables. [hub.toml](hub.toml) has every key with its default, as
`hub config default` prints it. An unknown key, a value that cannot be used or a syntax error stops
every command, with all problems at once. A change needs a restart; only certificates are read
again while the hub runs.

```sh
hub config check hub.toml     # all problems, with file, line and column
hub config print --origin     # what is in force, and where each value comes from
hub config default > hub.toml # every setting with its default, as a comment
```

Lengths of time are written `500ms`, `10s`, `5m`, `2h`, `8d`; sizes `16KiB`, `64MiB`, `2GiB`, or as
a number of bytes. `hub config print` shows no secret: passwords in URLs and the settings whose
names end in `_key`, `_secret`, `_password` or `_token` are `REDACTED`.
";

/// The commented file: every line that sets something is a comment.
pub fn file(settings: &[Setting]) -> String {
    let mut all = FILE_HEAD.to_owned();
    for (heading, settings) in by_heading(settings) {
        let _ = write!(all, "\n# --- {heading} ---\n");
        for setting in settings {
            let _ = write!(all, "\n{}", comment(&meaning(setting)));
            let value = setting.default.as_deref().unwrap_or_default();
            let _ = writeln!(all, "#{} = {}", setting.key, setting.toml(value));
        }
    }
    all
}

/// The page.
pub fn page(settings: &[Setting]) -> String {
    let mut all = PAGE_HEAD.to_owned();
    for (heading, settings) in by_heading(settings) {
        let _ = write!(all, "\n## {heading}\n");
        for setting in settings {
            let default = match &setting.default {
                Some(value) => format!("default `{}`", setting.toml(value)),
                None => "not set".to_owned(),
            };
            let kind = match setting.kind {
                Kind::Bool => "`true` or `false`".to_owned(),
                Kind::Number => "number".to_owned(),
                Kind::Size => "size".to_owned(),
                Kind::Length => "length of time".to_owned(),
                Kind::Path => "path".to_owned(),
                Kind::Choice => format!("`{}`", setting.choices.join("`, `")),
                Kind::Text => "text".to_owned(),
            };
            let _ = write!(
                all,
                "\n### `{}`\n\n`--{}` · `{}` · {kind} · {default}\n\n{}\n",
                setting.key, setting.flag, setting.variable, setting.text
            );
        }
    }
    all
}

/// Groups in the order in which they first come.
fn by_heading(settings: &[Setting]) -> Vec<(&str, Vec<&Setting>)> {
    let mut groups: Vec<(&str, Vec<&Setting>)> = Vec::new();
    for setting in settings {
        let at = groups
            .iter()
            .position(|(heading, _)| *heading == setting.heading);
        match at {
            Some(at) => groups[at].1.push(setting),
            None => groups.push((&setting.heading, vec![setting])),
        }
    }
    groups
}

fn meaning(setting: &Setting) -> String {
    let mut text = setting.text.clone();
    if setting.kind == Kind::Choice {
        let _ = write!(text, " One of {}.", setting.choices.join(", "));
    }
    if setting.default.is_none() {
        text.push_str(" Not set by default.");
    }
    text
}

fn comment(text: &str) -> String {
    let (mut all, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            let _ = writeln!(all, "# {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(all, "# {line}");
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::{file, settings};

    fn committed(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(name);
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn the_page_is_that_of_the_settings() {
        assert!(
            committed("configuration.md") == page(&settings::all()),
            "run: cargo run -q -- config reference > docs/configuration.md"
        );
    }

    #[test]
    fn the_file_is_that_of_the_settings() {
        assert!(
            committed("hub.toml") == super::file(&settings::all()),
            "run: cargo run -q -- config default > docs/hub.toml"
        );
    }

    #[test]
    fn the_defaults_of_the_file_are_those_of_the_program() {
        let settings = settings::all();
        let text = super::file(&settings);
        let set: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .collect();
        assert_eq!(set.len(), settings.len());
        let contents = file::parse(&set.join("\n"), Path::new("hub.toml"), &settings);
        for setting in &settings {
            let value = contents
                .values
                .iter()
                .find(|value| value.key == setting.key);
            match &setting.default {
                Some(default) => assert_eq!(&value.unwrap().text, default, "{}", setting.key),
                None => assert!(value.is_none_or(|value| value.text.is_empty())),
            }
        }
        let unset = |key: &str| {
            settings
                .iter()
                .any(|one| one.key == key && one.default.is_none())
        };
        assert!(contents.problems.iter().all(|problem| unset(&problem.key)));
    }
}
