//! Part of an answer: the checks that an event meets on its way to one destination. What comes
//! before the ways part is a branch as well.

use hub_core::clock::Micros;
use hub_core::explain::{Checklist, Finding, Progress};
use hub_proto::hub::explain::v1::{CheckResult, Fix, FixActor, Verdict};

/// Most fixes of an answer.
const FIXES_MAX: usize = 20;
/// Branches whose names a summary tells.
const NAMES_MAX: usize = 10;

/// Checks under way, with what they ask for.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    /// Of the destination or subscription; empty before the ways part.
    pub(super) name: String,
    pub(super) checks: Checklist,
    /// What to do about checks that fail, with the place of the check where the branch may yet
    /// have overcome it.
    fixes: Vec<(Option<usize>, Fix)>,
    /// What to do besides, if it has to be tried again.
    before_replay: Vec<Fix>,
    /// By which it is tried again.
    pub(super) replay: Option<Fix>,
    /// How far it has come.
    pub(super) progress: Progress,
    /// When to ask again while it goes on.
    pub(super) expect_by: Option<Micros>,
    /// The answer in one sentence.
    pub(super) sentence: String,
    pub(super) verdict: Verdict,
}

impl Branch {
    pub(super) fn new(checks: Checklist) -> Branch {
        Branch {
            name: String::new(),
            checks,
            fixes: Vec::new(),
            before_replay: Vec::new(),
            replay: None,
            progress: Progress::Standing,
            expect_by: None,
            sentence: String::new(),
            verdict: Verdict::Inconclusive,
        }
    }

    /// One that goes on from this one.
    pub(super) fn branch(&self, name: &str) -> Branch {
        Branch {
            name: name.to_owned(),
            checks: self.checks.branch(),
            fixes: Vec::new(),
            ..self.clone()
        }
    }

    /// The same for a subscription, which may have it although the ways were closed then: to try
    /// that again is of no use any more.
    pub(super) fn subscription(&self, name: &str, has_it: bool) -> Branch {
        let mut branch = self.branch(name);
        if has_it {
            branch.checks.overcome();
            branch.replay = None;
        }
        branch
    }

    /// Adds the next check, with what to do if it fails. Returns whether it failed.
    pub(super) fn look(&mut self, finding: Finding, fixes: Vec<Fix>) -> bool {
        let (place, (then, now)) = (self.checks.count(), self.checks.add(finding));
        match (then, now) {
            // To try again is enough.
            (CheckResult::Fail, CheckResult::Pass) => {}
            (CheckResult::Fail, _) | (CheckResult::Skipped, CheckResult::Fail) => {
                let fixes = fixes.into_iter().map(|fix| (Some(place), fix));
                self.fixes.extend(fixes);
            }
            (_, CheckResult::Fail) => self.before_replay.extend(fixes),
            _ => {}
        }
        then == CheckResult::Fail
    }

    /// Adds what follows from all its checks.
    pub(super) fn conclude(mut self) -> Branch {
        self.verdict = self.checks.verdict(self.progress);
        match self.verdict {
            Verdict::Working => self.fixes.clear(),
            Verdict::InProgress => {
                let wait = "Wait: nothing stands in the way".to_owned();
                let wait = Checklist::advice(FixActor::Wait, wait);
                self.fixes.insert(0, (None, wait));
            }
            _ if self.checks.primary_cause().is_some() => {
                let more = self.before_replay.drain(..).chain(self.replay.take());
                self.fixes.extend(more.map(|fix| (None, fix)));
            }
            _ => {}
        }
        self
    }

    /// Puts branches behind it, those first that need somebody, so that what fails first among all
    /// is the cause of the verdict.
    pub(super) fn join(mut self, mut branches: Vec<Branch>) -> Branch {
        if branches.is_empty() {
            return self.conclude();
        }
        branches.sort_by(|one, two| (rank(one), &one.name).cmp(&(rank(two), &two.name)));
        let verdict = branches[0].verdict;
        let under_way = branches.iter().filter(|b| b.verdict == Verdict::InProgress);
        self.expect_by = under_way.filter_map(|branch| branch.expect_by).min();
        self.sentence = summary(&branches);
        self.verdict = verdict;
        self.checks.overcome_as(&branches[0].checks);
        let before = std::mem::take(&mut self.fixes);
        for branch in branches {
            let goes_on = matches!(branch.verdict, Verdict::Working | Verdict::InProgress);
            // What was in the way before the ways part, and was not overcome.
            let stands = |place: &Option<usize>| place.is_none_or(|at| branch.checks.stands(at));
            let before = before.iter().filter(|(place, _)| !goes_on && stands(place));
            self.fixes
                .extend(before.map(|(_, fix)| (None, fix.clone())));
            self.fixes
                .extend(branch.fixes.into_iter().map(|(_, fix)| (None, fix)));
            self.checks.append(branch.checks);
        }
        if verdict == Verdict::Working {
            self.fixes.clear();
        }
        self.drop_repeated_fixes();
        self
    }

    fn drop_repeated_fixes(&mut self) {
        let mut kept: Vec<(Option<usize>, Fix)> = Vec::new();
        for (place, fix) in self.fixes.drain(..) {
            let is_new = kept.iter().all(|(_, known)| *known != fix);
            if is_new && kept.len() < FIXES_MAX {
                kept.push((place, fix));
            }
        }
        self.fixes = kept;
    }

    /// What to do, in the order in which it is to be done.
    pub(super) fn take_fixes(&mut self) -> Vec<Fix> {
        self.fixes.drain(..).map(|(_, fix)| fix).collect()
    }
}

/// Those that need somebody first.
fn rank(branch: &Branch) -> u8 {
    match branch.verdict {
        Verdict::Blocked => 0,
        Verdict::FixedSince => 1,
        Verdict::InProgress => 2,
        Verdict::Inconclusive | Verdict::Unspecified => 3,
        Verdict::Working => 4,
    }
}

/// What the first one says, and which others have it.
fn summary(branches: &[Branch]) -> String {
    let first = &branches[0];
    if branches.len() == 1 {
        return first.sentence.clone();
    }
    let working = branches
        .iter()
        .filter(|branch| branch.verdict == Verdict::Working);
    let names: Vec<&str> = working.map(|branch| branch.name.as_str()).collect();
    let count = branches.len();
    let told = match names.len() {
        0 => format!("None of {count} has it."),
        all if all == count => format!("All {count} have it: {}.", list(&names)),
        some => format!("{some} of {count} have it: {}.", list(&names)),
    };
    match names.len() == count {
        true => told,
        false => format!("{} {told}", first.sentence),
    }
}

fn list(names: &[&str]) -> String {
    let told = names[..names.len().min(NAMES_MAX)].join(", ");
    match names.len() > NAMES_MAX {
        true => format!("{told}, …"),
        false => told,
    }
}

#[cfg(test)]
mod tests {
    use CheckResult::{Fail, Pass, Unspecified};
    use hub_core::auth::Scopes;

    use super::*;

    fn fix(title: &str) -> Fix {
        Checklist::advice(FixActor::Operator, title.to_owned())
    }

    fn titles(branch: &Branch) -> Vec<&str> {
        let titles = branch.fixes.iter().map(|(_, fix)| fix.title.as_str());
        titles.collect()
    }

    fn start() -> Branch {
        let list = Checklist::new("http://hub.example", &Scopes::default());
        let mut start = Branch::new(list);
        start.look(Finding::recorded("A", "It holds").then(Pass), vec![]);
        start
    }

    fn way(start: &Branch, name: &str, then: CheckResult, now: CheckResult) -> Branch {
        let mut way = start.branch(name);
        let finding = Finding::recorded("B", "It holds").then(then).now(now);
        way.look(finding, vec![fix(&format!("mend {name}"))]);
        way.replay = Some(fix(&format!("repeat {name}")));
        way.sentence = format!("{name} has it or not.");
        way
    }

    #[test]
    fn what_has_to_be_tried_again_is_mended_first() {
        let start = start();
        assert_eq!(
            titles(&way(&start, "x", Fail, Fail).conclude()),
            ["mend x", "repeat x"]
        );
        let fixed = way(&start, "x", Fail, Pass).conclude();
        assert_eq!(
            (fixed.verdict, titles(&fixed)),
            (Verdict::FixedSince, vec!["repeat x"])
        );
        let mut other = way(&start, "x", Pass, Fail);
        let off = Finding::recorded("C", "It holds").then(Fail).now(Pass);
        assert!(other.look(off, vec![fix("mend C")]));
        let other = other.conclude();
        assert_eq!(
            (other.verdict, titles(&other)),
            (Verdict::Blocked, vec!["mend x", "repeat x"])
        );
        let mut done = way(&start, "x", Fail, Fail);
        done.progress = Progress::Done;
        assert!(done.conclude().fixes.is_empty());
        let mut going = way(&start, "x", Pass, Fail);
        going.progress = Progress::UnderWay;
        assert_eq!(
            titles(&going.conclude()),
            ["Wait: nothing stands in the way"]
        );
    }

    #[test]
    fn the_branch_that_needs_somebody_comes_first_and_the_others_are_counted() {
        let start = start();
        let mut fine = way(&start, "a", Pass, Unspecified);
        fine.progress = Progress::Done;
        let (fine, fixed) = (fine.conclude(), way(&start, "b", Fail, Pass).conclude());
        let blocked = way(&start, "c", Fail, Fail).conclude();
        let joined = start.clone().join(vec![fine.clone(), fixed, blocked]);
        assert_eq!(joined.verdict, Verdict::Blocked);
        assert_eq!(joined.sentence, "c has it or not. 1 of 3 have it: a.");
        assert_eq!(titles(&joined), ["mend c", "repeat c", "repeat b"]);
        let all = start.clone().join(vec![
            fine.clone(),
            Branch {
                name: "d".into(),
                ..fine.clone()
            },
        ]);
        assert_eq!(all.sentence, "All 2 have it: a, d.");
        assert_eq!(
            (all.verdict, start.join(vec![fine]).sentence.as_str()),
            (Verdict::Working, "a has it or not.")
        );
    }
}
