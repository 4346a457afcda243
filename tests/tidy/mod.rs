//! The house rules: what reviewers should not have to remember. Each rule is a function from a file
//! to its findings, shown to fail by a snippet that breaks it, and then asked about every file.

mod crates;
mod migrated;
mod pages;
mod rules;
mod schema;
mod snippets;
mod source;
mod statements;
mod words;
