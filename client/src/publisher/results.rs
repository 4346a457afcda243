//! Which event a result is about.

use hub_proto::hub::event_bus::v1::{PublishResult, PublishWarning};

use super::Receipt;

/// What an acknowledgement says about its events.
#[derive(Debug, PartialEq)]
pub(super) enum Attribution {
    /// All are stored, and nothing more is known of each.
    Stored,
    /// One result for each event, in order.
    Each(Vec<PublishResult>),
    /// Some were refused, but it does not say which.
    Unclear,
}

/// Attributes the results of an acknowledgement of `events` events in `frames` frames.
///
/// With brief results an acknowledgement carries only errors, warnings and duplicates, and does
/// not say whose they are. Where no position follows, the caller has to send the frames again:
/// then every event is an error or a duplicate, and so has its result.
pub(super) fn attribute(results: Vec<PublishResult>, frames: usize, events: usize) -> Attribution {
    if results.iter().all(|result| result.error.is_none()) && results.len() != events {
        return Attribution::Stored;
    }
    if results.len() == events {
        return Attribution::Each(results);
    }
    if frames != 1 {
        return Attribution::Unclear;
    }
    let mut each = vec![PublishResult::default(); events];
    for result in results {
        if result.error.is_none() {
            continue;
        }
        match error_index(&result).and_then(|index| each.get_mut(index)) {
            Some(place) if place.error.is_none() => *place = result,
            _ => return Attribution::Unclear,
        }
    }
    Attribution::Each(each)
}

/// Index in its frame of the event that was refused.
fn error_index(result: &PublishResult) -> Option<usize> {
    result.error.as_ref()?.metadata.get("index")?.parse().ok()
}

/// What is known of a stored event; a result of nothing means that nothing is remarkable.
pub(super) fn receipt(result: PublishResult) -> Receipt {
    let warnings = result
        .warnings
        .iter()
        .filter_map(|warning| PublishWarning::try_from(*warning).ok());
    Receipt {
        duplicate: result.duplicate,
        warnings: warnings.collect(),
        sequence: (result.sequence != 0).then_some(result.sequence),
        event_id: (!result.event_id.is_empty()).then_some(result.event_id),
    }
}

#[cfg(test)]
mod tests {
    use hub_proto::hub::core::v1::Problem;

    use super::*;

    fn refused(index: Option<&str>) -> PublishResult {
        let mut problem = Problem {
            reason: "EVENT_INVALID".into(),
            ..Default::default()
        };
        if let Some(index) = index {
            problem.metadata.insert("index".into(), index.into());
        }
        PublishResult {
            error: Some(problem),
            ..Default::default()
        }
    }

    fn duplicate() -> PublishResult {
        PublishResult {
            sequence: 1,
            duplicate: true,
            ..Default::default()
        }
    }

    #[test]
    fn nothing_remarkable_means_that_all_are_stored() {
        assert_eq!(attribute(vec![], 3, 700), Attribution::Stored);
        assert_eq!(attribute(vec![duplicate()], 3, 700), Attribution::Stored);
    }

    #[test]
    fn as_many_results_as_events_are_in_their_order() {
        let results = vec![duplicate(), refused(None)];
        assert_eq!(attribute(results.clone(), 2, 2), Attribution::Each(results));
    }

    #[test]
    fn an_error_in_the_only_frame_is_of_the_event_at_its_index() {
        let Attribution::Each(each) = attribute(vec![refused(Some("2")), duplicate()], 1, 4) else {
            panic!("not attributed")
        };
        let errors: Vec<_> = each.iter().map(|result| result.error.is_some()).collect();
        assert_eq!(errors, [false, false, true, false]);
    }

    #[test]
    fn an_error_that_could_be_of_several_events_is_unclear() {
        assert_eq!(
            attribute(vec![refused(Some("0"))], 2, 4),
            Attribution::Unclear
        );
        assert_eq!(attribute(vec![refused(None)], 1, 4), Attribution::Unclear);
        assert_eq!(
            attribute(vec![refused(Some("4"))], 1, 4),
            Attribution::Unclear
        );
        let twice = vec![refused(Some("1")), refused(Some("1"))];
        assert_eq!(attribute(twice, 1, 4), Attribution::Unclear);
    }
}
