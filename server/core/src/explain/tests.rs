use super::*;
use CheckResult::{Fail, Pass, Redacted, Skipped, Unknown, Unspecified};

fn list(scopes: &[&str]) -> Checklist {
    let scopes = Scopes::new(scopes.iter().map(|scope| (*scope).to_owned()));
    Checklist::new("http://hub.example", &scopes)
}

fn check(code: &'static str, then: CheckResult, now: CheckResult) -> Finding {
    Finding::recorded(code, "It holds").then(then).now(now)
}

fn results(list: &Checklist) -> Vec<CheckResult> {
    list.checks.iter().map(Check::result).collect()
}

#[test]
fn a_check_is_skipped_when_one_that_it_needs_failed_or_was_skipped() {
    let mut list = list(&[]);
    list.add(check("A", Pass, Unspecified));
    let failed = list.add(check("B", Fail, Fail).needs(&["A"]));
    // What holds now is told all the same.
    let skipped = list.add(check("C", Fail, Pass).needs(&["A", "B"]));
    assert_eq!((failed, skipped), ((Fail, Fail), (Skipped, Pass)));
    list.add(check("D", Fail, Fail).needs(&["C"]));
    list.add(check("E", Fail, Fail).needs(&["A"]));
    assert_eq!(results(&list)[3..], [Skipped, Fail]);
    assert_eq!(list.checks[2].detail, "Not looked at: B did not hold.");
    assert_eq!(list.primary_cause().unwrap().code, "B");
    assert_eq!(list.checks[0].doc_url, "http://hub.example/checks/A");
}

#[test]
fn what_is_unknown_or_hidden_keeps_nothing_from_being_looked_at() {
    let mut list = list(&["hub:diagnostics.read"]);
    list.add(check("A", Unknown, Unspecified));
    let secret = check("B", Fail, Fail).visible_with("hub:keys.read");
    let secret = secret.detail("a secret").saw_text("key", "a secret");
    assert_eq!(list.add(secret.needs(&["A"])), (Redacted, Redacted));
    let seen = check("C", Pass, Unspecified).visible_with("hub:diagnostics.read");
    list.add(seen.needs(&["A", "B"]));
    assert_eq!(results(&list), [Unknown, Redacted, Pass]);
    assert!(!format!("{list:?}").contains("a secret"), "{list:?}");
    assert_eq!(list.primary_cause(), None);
    assert_eq!(list.verdict(Progress::Standing), Verdict::Inconclusive);
}

#[test]
fn the_verdict_follows_from_then_and_now_and_from_what_goes_on() {
    use Progress::{Done, Standing, UnderWay};
    let plain = (Pass, Unspecified);
    for (checks, progress, expected) in [
        (&[plain][..], Done, Verdict::Working),
        (&[(Fail, Fail)], Done, Verdict::Working),
        (&[plain], UnderWay, Verdict::InProgress),
        (
            &[plain, (Unknown, Unknown)],
            Standing,
            Verdict::Inconclusive,
        ),
        (&[(Fail, Fail)], Standing, Verdict::Blocked),
        (&[(Fail, Unspecified)], UnderWay, Verdict::Blocked),
        (&[(Fail, Pass)], Standing, Verdict::FixedSince),
        (&[(Fail, Pass), (Pass, Pass)], Standing, Verdict::FixedSince),
        // It would be stopped by something else now.
        (&[(Fail, Pass), (Pass, Fail)], Standing, Verdict::Blocked),
        (&[(Fail, Unknown)], Standing, Verdict::Blocked),
        // It was given on again after it had failed.
        (&[(Fail, Pass)], UnderWay, Verdict::InProgress),
        // What was decided stays decided.
        (&[(Pass, Fail)], UnderWay, Verdict::InProgress),
    ] {
        let mut list = list(&[]);
        for (then, now) in checks {
            list.add(check("A", *then, *now));
        }
        assert_eq!(list.verdict(progress), expected, "{checks:?} {progress:?}");
    }
}

#[test]
fn branches_go_on_from_the_same_checks_and_do_not_see_each_other() {
    let mut all = list(&[]);
    all.add(check("A", Pass, Unspecified));
    let (mut one, mut two) = (all.branch(), all.branch());
    one.add(check("B", Fail, Fail).needs(&["A"]));
    one.add(check("C", Pass, Pass).needs(&["B"]));
    two.add(check("B", Pass, Pass).needs(&["A"]));
    two.add(check("C", Pass, Pass).needs(&["B"]));
    assert_eq!(one.verdict(Progress::Standing), Verdict::Blocked);
    assert_eq!(two.verdict(Progress::Done), Verdict::Working);
    all.append(two);
    all.append(one);
    assert_eq!(results(&all), [Pass, Pass, Pass, Fail, Skipped]);
}

#[test]
fn a_fix_is_a_complete_call_with_its_scope_and_command_line() {
    let method = "hub.platform.v1.Platform/SetIntegration";
    let request = serde_json::json!({"source": "psa", "enabled": true, "reason": "it's on"});
    let title = "Turn it on".to_owned();
    let fix = list(&[]).fix(FixActor::Operator, title, method, request);
    assert_eq!(fix.rpc, method);
    assert_eq!(fix.required_scope, "hub:integrations.write");
    let fields = fix.request.unwrap().fields;
    assert_eq!(fields.len(), 3);
    assert!(
        fix.cli
            .ends_with("http://hub.example/hub.platform.v1.Platform/SetIntegration")
    );
    assert!(fix.cli.contains(r#""reason":"it'\''s on""#), "{}", fix.cli);
}

#[test]
fn what_was_overcome_since_is_no_cause_and_stands_in_nobodys_way() {
    let mut trunk = list(&[]);
    trunk.add(check("A", Fail, Fail));
    trunk.add(Finding::current("B", "It holds").both(Pass));
    let mut branch = trunk.branch();
    branch.overcome();
    assert_eq!(branch.primary_cause(), None);
    assert_eq!(branch.verdict(Progress::UnderWay), Verdict::InProgress);
    branch.add(check("C", Fail, Fail));
    assert_eq!(branch.primary_cause().unwrap().code, "C");
    let mut all = trunk.clone();
    all.overcome_as(&branch);
    all.append(branch);
    assert_eq!(all.primary_cause().unwrap().code, "C");
    // Of several, each has overcome what is its own.
    let mut other = trunk.branch();
    other.add(check("E", Fail, Fail));
    other.overcome();
    all.append(other);
    let standing: Vec<_> = all.standing().map(|check| &*check.code).collect();
    assert_eq!(standing, ["B", "C"]);
    // What is so now is in the way, whoever let it pass.
    let mut now = list(&[]);
    now.add(Finding::current("D", "It holds").both(Fail));
    now.overcome();
    assert_eq!(now.primary_cause().unwrap().code, "D");
}

#[test]
fn an_answer_tells_its_times_and_its_cause() {
    let mut checks = list(&[]);
    checks.add(
        check("A", Fail, Pass)
            .saw_time("at", 0)
            .saw_span("took", 1_500_000),
    );
    let verdict = checks.verdict(Progress::Standing);
    let answer = checks.answer(Conclusion {
        summary: "x".repeat(5000),
        verdict,
        fixes: Vec::new(),
        as_of: 1_000_000,
        expect_by: None,
        now: 2_000_000,
    });
    assert_eq!(answer.primary_cause, "A");
    assert_eq!(answer.summary.len(), TEXT_BYTES_MAX + '…'.len_utf8());
    assert_eq!(answer.evaluate_time.unwrap().seconds, 2);
    assert_eq!(answer.checks[0].evidence.len(), 1, "time 0 was not seen");
}
