//! What the judge says.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn rule(tool: &str, arguments: &[(&str, &str)], decision: Decision) -> Rule {
    let owned = |(name, pattern): &(&str, &str)| ((*name).to_owned(), (*pattern).to_owned());
    Rule {
        name: Some(decision.as_str().to_owned()),
        tool: tool.to_owned(),
        tool_type: None,
        effect: None,
        path: None,
        arguments: arguments.iter().map(owned).collect(),
        decision,
    }
}

/// What becomes of a call of `Files.read` that is usually asked about.
fn judged(rules: &[Rule], parameters: &str) -> Verdict {
    let parameters = Payload::from_text(parameters.to_owned()).unwrap();
    let subject = Subject {
        namespace: "Files",
        tool_name: "read",
        tool_type: ToolType::DataCollection,
        parameters: Some(&parameters),
        file: None,
        touched: &[],
        usual: Decision::Ask,
    };
    Policy::new(rules.to_vec()).judge(&subject)
}

/// Whether a rule for these arguments fits them.
fn fits(decision: Decision, arguments: &[(&str, &str)], parameters: &str) -> bool {
    let verdict = judged(&[rule("*", arguments, decision)], parameters);
    verdict.rule != DEFAULT_RULE
}

fn decisions() -> impl Strategy<Value = Decision> {
    prop::sample::select(Decision::ALL.to_vec())
}

/// Rules that are about `Files.read {"path": "/srv/a"}`, and such that are not.
fn rules() -> impl Strategy<Value = Vec<(Rule, bool)>> {
    let tool = prop::sample::select(vec![("Files.*", true), ("*.read", true), ("Screen.*", false)]);
    let path =
        prop::sample::select(vec![(None, true), (Some("/srv/*"), true), (Some("/etc/*"), false)]);
    let one = (tool, path, decisions()).prop_map(|((tool, of_tool), (path, of_path), decision)| {
        let arguments: Vec<_> = path.map(|pattern| ("path", pattern)).into_iter().collect();
        (rule(tool, &arguments, decision), of_tool && of_path)
    });
    prop::collection::vec(one, 0..8)
}

proptest! {
    #[test]
    fn the_strictest_rule_wins_in_any_order(
        (rules, shuffled) in rules().prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
    ) {
        let expected = rules.iter().filter(|(_, fits)| *fits).map(|(rule, _)| rule.decision).max();
        for order in [rules, shuffled] {
            let order: Vec<_> = order.into_iter().map(|(rule, _)| rule).collect();
            let verdict = judged(&order, r#"{"path": "/srv/a"}"#);
            prop_assert_eq!(verdict.decision, expected.unwrap_or(Decision::Ask));
            prop_assert_eq!(verdict.rule, expected.map_or(DEFAULT_RULE, Decision::as_str));
        }
    }

    #[test]
    fn a_denial_is_not_undone_by_whatever_else_is_said(
        (mut rules, at) in (rules(), any::<prop::sample::Index>()),
    ) {
        let at = at.index(rules.len() + 1);
        rules.insert(at, (rule("Files.re?d", &[("path", "*a")], Decision::Deny), true));
        let rules: Vec<_> = rules.into_iter().map(|(rule, _)| rule).collect();
        prop_assert_eq!(judged(&rules, r#"{"path": "/srv/a"}"#).decision, Decision::Deny);
    }
}

#[test]
fn a_rule_without_a_name_goes_by_its_number() {
    let nameless = Rule { name: None, ..rule("Files.*", &[], Decision::Deny) };
    let rules = [rule("Screen.*", &[], Decision::Allow), nameless];
    assert_eq!(judged(&rules, "{}").rule, "rule 2");
}

#[test]
fn every_named_argument_must_be_there_and_fit() {
    let both = [("path", "*.pem"), ("mode", "w")];
    for (parameters, fit) in [
        (r#"{"path": "a.pem", "mode": "w", "other": 1}"#, true),
        (r#"{"path": "a.pem", "mode": "r"}"#, false),
        (r#"{"path": "a.pem"}"#, false),
        ("{}", false),
    ] {
        assert_eq!(fits(Decision::Allow, &both, parameters), fit, "{parameters}");
        assert_eq!(fits(Decision::Deny, &both, parameters), fit, "{parameters}");
    }
}

#[test]
fn an_allow_holds_for_no_call_that_lacks_the_argument() {
    let anything = rule("*", &[("path", "*")], Decision::Allow);
    for parameters in ["{}", r#"{"Path": "a"}"#, r#"{"path": []}"#, r#"{"path": {}}"#] {
        let fit = judged(std::slice::from_ref(&anything), parameters).decision == Decision::Allow;
        // An object is there, and fits by its JSON.
        assert_eq!(fit, parameters.contains("{}}"), "{parameters}");
    }
    let subject = Subject {
        namespace: "Files",
        tool_name: "read",
        tool_type: ToolType::Action,
        parameters: None,
        file: None,
        touched: &[],
        usual: Decision::Ask,
    };
    assert_eq!(Policy::new([anything]).judge(&subject).decision, Decision::Ask);
}

#[test]
fn how_a_text_is_written_makes_no_difference() {
    let deny = |pattern: &str, value: &str| {
        fits(Decision::Deny, &[("a", pattern)], &format!(r#"{{"\u0061": {value}}}"#))
    };
    assert!(deny("*.pem", r#""x\u002ep\u0065m""#));
    assert!(deny("/srv/*", r#""\/srv\/a""#));
    for whole in ["22", "22.0", "2.2e1", "220E-1", r#""22""#] {
        assert!(deny("22", whole), "{whole}");
    }
    assert!(deny("true", "true") && deny("null", "null") && deny("1.5", "1.50"));
    assert!(deny(r#"{"b":[1,2]}"#, r#"{ "b" : [ 1, 2 ] }"#));
    assert!(deny("a*z", r#""a\nb\u0000z""#), "a pattern goes over line breaks");
    assert!(!deny("*.pem", r#""a.PEM""#), "upper and lower case differ");
}

#[test]
fn one_item_of_a_list_is_enough_to_deny_and_not_to_allow() {
    for (paths, any, all) in [
        (r#"["/srv/a", "/srv/b"]"#, true, true),
        (r#"["/srv/a", "/etc/shadow"]"#, true, false),
        (r#"[["/srv/a"], ["/srv/b", "/etc/shadow"]]"#, true, false),
        ("[]", false, false),
    ] {
        let parameters =
            format!(r#"{{"paths": {paths}, "edits": [{{"to": {paths}}}, {{"to": "/srv/c"}}]}}"#);
        for name in ["paths", "edits.to"] {
            let pattern = [(name, "/srv/*")];
            let all = all && fits(Decision::Allow, &[("edits.to", "*")], &parameters);
            assert_eq!(fits(Decision::Allow, &pattern, &parameters), all, "{name} {paths}");
            let any = any || name == "edits.to";
            assert_eq!(fits(Decision::Deny, &pattern, &parameters), any, "{name} {paths}");
        }
    }
    let one_lacks_it = r#"{"edits": [{"to": "/srv/a"}, {}]}"#;
    assert!(!fits(Decision::Allow, &[("edits.to", "*")], one_lacks_it));
}

#[test]
fn a_name_with_dots_leads_inside_and_cannot_be_faked_by_another() {
    let nested = [("options.path", "/srv/*")];
    assert!(fits(Decision::Allow, &nested, r#"{"options": {"path": "/srv/a"}}"#));
    let faked = r#"{"options.path": "/srv/a", "options": {"path": "/etc/shadow"}}"#;
    assert!(!fits(Decision::Allow, &nested, faked));
    assert!(fits(Decision::Deny, &nested, faked));
    assert!(!fits(Decision::Deny, &nested, r#"{"options": "/srv/a"}"#));
}

#[test]
fn arguments_that_name_something_twice_are_refused_at_any_depth() {
    for parameters in [
        r#"{"path": "a", "path": "b"}"#,
        r#"{"path": "a", "p\u0061th": "b"}"#,
        r#"{"x": [1, {"y": {"path": 1, "z": 2, "path": 1}}]}"#,
        r#"{"x": [{"z": 1}, {"path": 1, "path": 2}]}"#,
    ] {
        for rules in [vec![], vec![rule("*", &[("path", "*")], Decision::Allow)]] {
            let verdict = judged(&rules, parameters);
            assert_eq!(verdict.decision, Decision::Deny, "{parameters}");
            let expected = r#"unclear arguments: "path" is there twice at line 1"#;
            assert!(verdict.rule.starts_with(expected), "{}", verdict.rule);
        }
    }
    let fine = r#"{"path": "a", "x": [{"path": "b"}, {"path": "b"}], "PATH": 1.5, "n": null, "t": true, "m": -1}"#;
    assert_eq!(judged(&[], fine).rule, DEFAULT_RULE);
    let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(198), "]".repeat(198));
    assert_eq!(judged(&[rule("*", &[("a", "1")], Decision::Allow)], &deep).rule, "allow");
}

#[test]
fn a_text_that_is_no_text_is_refused_where_a_rule_looks_at_it() {
    let rules = [rule("*", &[("path", "/srv/*")], Decision::Allow)];
    let verdict = judged(&rules, r#"{"path": "/srv/\ud800"}"#);
    assert!(verdict.decision == Decision::Deny && verdict.rule.contains("unclear"), "{verdict:?}");
}

#[test]
fn a_rule_for_a_type_leaves_the_other_type_alone() {
    let actions = Rule { tool_type: Some(ToolType::Action), ..rule("*", &[], Decision::Deny) };
    assert_eq!(judged(&[actions], "{}").rule, DEFAULT_RULE);
    let observes =
        Rule { tool_type: Some(ToolType::DataCollection), ..rule("*", &[], Decision::Deny) };
    assert_eq!(judged(&[observes], "{}").decision, Decision::Deny);
}

#[test]
fn a_tool_that_no_arguments_make_good_is_told_from_one_that_some_do() {
    let policy = Policy::new([
        rule("Files.read", &[("path", "*")], Decision::Deny),
        rule("Files.w*", &[], Decision::Deny),
    ]);
    let never = |name| policy.never_allows("Files", name, ToolType::Action);
    assert_eq!((never("read"), never("write"), never("list")), (None, Some("deny"), None));
}

#[test]
fn the_outlook_names_what_arguments_may_change() {
    let outlook = |rules: &[Rule]| {
        let subject = Subject {
            namespace: "Files",
            tool_name: "read",
            tool_type: ToolType::DataCollection,
            parameters: None,
            file: None,
            touched: &[],
            usual: Decision::Allow,
        };
        let Outlook { verdict, unless } = Policy::new(rules.to_vec()).outlook(&subject);
        (verdict.rule, unless.into_iter().map(|verdict| verdict.decision).collect::<Vec<_>>())
    };
    let keys = [("path", "*.pem")];
    let [allow, ask, deny] = Decision::ALL.map(|decision| rule("*", &keys, decision));
    let conditional = [allow, ask, deny];
    assert_eq!(
        outlook(&conditional),
        ("default".to_owned(), vec![Decision::Deny, Decision::Ask, Decision::Allow])
    );
    let with = |decision| {
        let mut rules = conditional.to_vec();
        rules.push(rule("*", &[], decision));
        outlook(&rules)
    };
    assert_eq!(with(Decision::Allow), ("allow".to_owned(), vec![Decision::Deny, Decision::Ask]));
    assert_eq!(with(Decision::Ask), ("ask".to_owned(), vec![Decision::Deny]));
    assert_eq!(with(Decision::Deny), ("deny".to_owned(), vec![]));
}

#[test]
fn a_rule_that_can_never_fit_is_told() {
    let tool = ToolInfo {
        tool_key: String::new(),
        tool_name: "read".to_owned(),
        namespace: "Files".to_owned(),
        tool_type: ToolType::DataCollection,
        title: None,
        description: None,
        input_schema: Some(json!({"properties": {"path": {}, "options": {}}})),
        output_schema: None,
        meta: None,
        annotations: None,
    };
    let idle = |rule: Rule| Policy::new([rule]).idle_rules(std::slice::from_ref(&tool)).pop();
    let deny = |tool, name| rule(tool, &[(name, "*")], Decision::Deny);
    assert_eq!(idle(deny("Files.*", "path")), None);
    assert_eq!(idle(deny("Files.*", "options.deep")), None);
    let wrong = idle(deny("File.*", "path")).unwrap();
    assert_eq!(wrong, "rule 1 \"deny\": no tool here is \"File.*\"");
    let wrong = idle(deny("Files.*", "pth")).unwrap();
    assert_eq!(wrong, "rule 1 \"deny\": no tool it is about takes an argument \"pth\"");
    let actions =
        Rule { tool_type: Some(ToolType::Action), ..rule("Files.*", &[], Decision::Deny) };
    let wrong = idle(actions).unwrap();
    assert_eq!(wrong, "rule 1 \"deny\": no tool here is \"Files.*\" of type action");
    let [allow, ask, deny] = Decision::ALL.map(|decision| rule("Files.*", &[], decision));
    let policy = Policy::new([allow, ask, deny]);
    let all = policy.idle_rules(std::slice::from_ref(&tool));
    let since = [
        "rule 1 \"allow\": it never decides, since rule 2 \"ask\" is stricter",
        "rule 2 \"ask\": it never decides, since rule 3 \"deny\" is stricter",
    ];
    assert_eq!(all, since);
}

#[test]
fn two_rules_of_one_name_are_told_apart_where_they_never_decide() {
    let twice = |tool| Rule { name: Some("mine".to_owned()), ..rule(tool, &[], Decision::Deny) };
    let nameless = Rule { name: None, ..rule("c.*", &[], Decision::Ask) };
    let idle = Policy::new([twice("a.*"), twice("b.*"), nameless]).idle_rules(&[]);
    let expected = [
        r#"rule 1 "mine": no tool here is "a.*""#,
        r#"rule 2 "mine": no tool here is "b.*""#,
        r#"rule 3: no tool here is "c.*""#,
    ];
    assert_eq!(idle, expected);
}

/// Whether a rule for tools that are called so speaks of this one.
fn speaks(decision: Decision, pattern: &str, (namespace, tool_name): (&str, &str)) -> bool {
    let subject = Subject {
        namespace,
        tool_name,
        tool_type: ToolType::Action,
        parameters: None,
        file: None,
        touched: &[],
        usual: Decision::Ask,
    };
    Policy::new([rule(pattern, &[], decision)]).judge(&subject).rule != DEFAULT_RULE
}

#[test]
fn what_denies_or_asks_fits_however_a_name_with_dots_is_read() {
    for decision in [Decision::Deny, Decision::Ask] {
        for pattern in ["docs.sub.*", "docs.sub.write", "docs*write", "*.write", "*"] {
            assert!(speaks(decision, pattern, ("docs.sub", "write")), "{pattern}");
            assert!(speaks(decision, pattern, ("docs", "sub.write")), "{pattern}");
        }
        assert!(speaks(decision, "docs.*", ("docs.sub", "write")));
        assert!(speaks(decision, "a.b::c", ("a", "b::c")), "a tool may have :: in its name");
        assert!(!speaks(decision, "docs.sub::*", ("docs", "sub.write")), "it says which");
    }
}

#[test]
fn no_tool_is_allowed_by_a_name_that_makes_it_look_like_one_of_another_server() {
    let allows = |pattern, tool| speaks(Decision::Allow, pattern, tool);
    let (of_docs, of_sub) = (("docs", "sub.write"), ("docs.sub", "write"));
    for (pattern, fits_docs, fits_sub) in [
        ("docs.*", true, false),
        ("docs::sub.*", true, false),
        ("docs::sub.write", true, false),
        ("docs.sub::*", false, true),
        ("*.write", false, true),
        ("*::sub.write", true, false),
        ("*", true, true),
        ("docs*", true, true),
        // It does not say which.
        ("docs.sub.*", false, false),
        ("docs.sub.write", false, false),
    ] {
        assert_eq!(allows(pattern, of_docs), fits_docs, "{pattern}");
        assert_eq!(allows(pattern, of_sub), fits_sub, "{pattern}");
    }
    assert!(allows("Files.read", ("Files", "read")) && allows("Files::read", ("Files", "read")));
}

#[test]
fn a_rule_that_allows_and_does_not_say_what_is_told_with_the_remedy() {
    let unclear = |tool, decision| rule(tool, &[], decision).unclear();
    let told = unclear("a.b.c*", Decision::Allow).unwrap();
    assert!(told.contains(r#""a::b.c*""#) && told.contains(r#""a.b::c*""#), "{told}");
    assert_eq!(unclear("a.b.c*", Decision::Deny), None);
    for clear in ["a.b", "*", "a.b::c", "a::b.c"] {
        assert_eq!(unclear(clear, Decision::Allow), None, "{clear}");
    }
}

/// A rule on what is done to files.
fn on_files(effect: Effect, path: Option<&str>, decision: Decision) -> Rule {
    Rule { effect: Some(effect), path: path.map(str::to_owned), ..rule("*", &[], decision) }
}

/// What becomes of a call that touches these files and is usually asked about.
fn touching(rules: &[Rule], namespace: &str, tool_name: &str, touched: &[Touch]) -> Decision {
    let subject = Subject {
        namespace,
        tool_name,
        tool_type: ToolType::Action,
        parameters: None,
        file: None,
        touched,
        usual: Decision::Ask,
    };
    Policy::new(rules.to_vec()).judge(&subject).decision
}

fn on(effect: Effect, path: &str) -> Touch {
    Touch::on(effect, path.to_owned(), "as/asked".to_owned())
}

#[test]
fn a_rule_on_files_holds_whichever_tool_touches_them() {
    let rules = [on_files(Effect::Read, Some("*.pem"), Decision::Deny)];
    let (key, text) = (on(Effect::Read, "/srv/k.pem"), on(Effect::Read, "/srv/k.txt"));
    let runs = on(Effect::Execute, "/usr/bin/cat");
    for (namespace, tool) in
        [("Files", "read_file"), ("BashExecutor", "execute_command"), ("docs", "show")]
    {
        let judged = |touched: &[Touch]| touching(&rules, namespace, tool, touched);
        assert_eq!(judged(&[runs.clone(), text.clone(), key.clone()]), Decision::Deny, "{tool}");
        assert_eq!(judged(&[runs.clone(), text.clone()]), Decision::Ask, "{tool}");
        assert_eq!(judged(&[on(Effect::Write, "/srv/k.pem")]), Decision::Ask, "{tool}");
    }
    let asked = Touch::on(Effect::Read, "/srv/other".to_owned(), "link.pem".to_owned());
    assert_eq!(touching(&rules, "Files", "read_file", &[asked]), Decision::Deny);
    let policy = Policy::new(rules);
    let subject = Subject {
        namespace: "Files",
        tool_name: "search_files",
        tool_type: ToolType::DataCollection,
        parameters: None,
        file: None,
        touched: &[],
        usual: Decision::Allow,
    };
    let closes = |path| policy.closes(Effect::Read, path, &subject);
    assert!(closes("/srv/a.pem") && !closes("/srv/a.txt") && policy.looks_at_effects(&subject));
}

#[test]
fn a_rule_on_files_allows_only_what_is_known_to_be_meant() {
    let rules = [on_files(Effect::Write, Some("/srv/in/*"), Decision::Allow)];
    let judged = |touched: &[Touch]| touching(&rules, "Files", "write_file", touched);
    let inside = on(Effect::Write, "/srv/in/a");
    assert_eq!(judged(std::slice::from_ref(&inside)), Decision::Allow);
    let led_out = Touch::on(Effect::Write, "/srv/a".to_owned(), "/srv/in/link".to_owned());
    let perhaps = Touch::perhaps_on(Effect::Write, vec!["/srv/in/a".to_owned()]);
    for other in [led_out, perhaps, Touch::somewhere(Effect::Write), on(Effect::Read, "/srv/in/a")]
    {
        assert_eq!(judged(&[inside.clone(), other.clone()]), Decision::Ask, "{other:?}");
    }
    assert_eq!(judged(&[]), Decision::Ask);
}

#[test]
fn a_rule_on_an_effect_alone_is_about_the_tools_that_have_it() {
    let policy = Policy::new([on_files(Effect::Write, None, Decision::Deny)]);
    let never = |namespace, name, kind| policy.never_allows(namespace, name, kind).is_some();
    assert!(never("Files", "write_file", ToolType::Action));
    assert!(never("docs", "change", ToolType::Action));
    assert!(!never("docs", "show", ToolType::DataCollection));
    assert!(!never("Files", "read_file", ToolType::DataCollection));
    assert!(!never("BashExecutor", "execute_command", ToolType::Action), "it may only read");
    let rules = [on_files(Effect::Execute, None, Decision::Deny)];
    let runs = [on(Effect::Execute, "/usr/bin/cat")];
    assert_eq!(touching(&rules, "BashExecutor", "execute_command", &runs), Decision::Deny);
    assert_eq!(touching(&rules, "BashExecutor", "get_system_info", &[]), Decision::Ask);
}
