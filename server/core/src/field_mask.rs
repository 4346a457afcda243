//! Which fields an update changes.

use prost_types::FieldMask;

use crate::error::{Error, Result};

/// The fields that `mask` names, out of those that an update may change; each comes with whether
/// the request sets it. `*` = all. Without a mask the fields that the request sets are changed.
///
/// Errors: `FIELD_INVALID` for a path that cannot be changed.
pub fn fields(
    mask: Option<&FieldMask>,
    known: &[(&'static str, bool)],
) -> Result<Vec<&'static str>> {
    let paths = mask.map_or(&[][..], |mask| &mask.paths);
    if paths.is_empty() {
        let set = known.iter().filter(|(_, is_set)| *is_set);
        return Ok(set.map(|(name, _)| *name).collect());
    }
    if paths.iter().any(|path| path == "*") {
        return Ok(known.iter().map(|(name, _)| *name).collect());
    }
    let mut fields = Vec::with_capacity(paths.len());
    for path in paths {
        match known.iter().find(|(name, _)| name == path) {
            Some((name, _)) if !fields.contains(name) => fields.push(*name),
            Some(_) => {}
            None => {
                let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
                let problem = format!("has {path:?}; it may have {} or *", names.join(", "));
                return Err(Error::field("update_mask", problem));
            }
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[(&str, bool)] = &[("name", true), ("retention", false)];

    fn of(paths: &[&str]) -> Result<Vec<&'static str>> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        fields(Some(&FieldMask { paths }), KNOWN)
    }

    #[test]
    fn a_mask_names_fields_and_no_mask_means_what_is_set() {
        assert_eq!(fields(None, KNOWN).unwrap(), ["name"]);
        assert_eq!(of(&[]).unwrap(), ["name"]);
        assert_eq!(of(&["retention"]).unwrap(), ["retention"]);
        assert_eq!(of(&["retention", "retention"]).unwrap(), ["retention"]);
        assert_eq!(of(&["*"]).unwrap(), ["name", "retention"]);
        let error = of(&["name", "etag"]).unwrap_err();
        assert_eq!(error.reason(), "FIELD_INVALID");
        assert!(error.message().contains("retention"), "{error}");
    }
}
