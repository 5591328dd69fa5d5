//! Against a real child process that answers calls in every wrong way.

use super::*;

/// Has the server write these lines, with the call's id for `$ID`, and each character as a byte.
async fn write(host: &Host, lines: &[&str]) -> Result<Value, String> {
    call(host, "write", json!({ "lines": lines })).await
}

/// A result that is nothing but this structured content.
fn structured(value: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":$ID,"result":{{"structuredContent":{value}}}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_read_fails_its_call_at_once_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let mut answers: Vec<(String, &str)> = [
        (r#"{"a":"\ud800"}"#, r#"hex escape near '{"a":"\ud800"}'"#),
        (r#"{"a":NaN}"#, r#"expected value near 'turedContent":{"a":NaN}}}'"#),
        ("1e400", "number out of range"),
        ("{\"a\":\"\u{ff}\"}", "invalid unicode"),
        ("{\"a\":\"\t\"}", "control character"),
        ("{\"a\":1,}", "key must be a string"),
        ("\"cut", "EOF"),
    ]
    .map(|(value, told)| (structured(value), told))
    .into();
    answers.extend(
        [
            (r#"{"jsonrpc":"2.0","id":$ID}"#, "neither a result nor an error"),
            (r#"{"result":{"content":[]},"result":{},"id":"$ID"}"#, "duplicate field"),
            (r#"{"jsonrpc":"2.0","id":$ID,"result":{"content":[{"type":"text","text":"a"b"}]}}"#, "expected"),
            (r#"{"jsonrpc":"2.0","id":$ID,"result":{"content":[{"type":"text","text":"\udc00"}]}}"#, "surrogate"),
        ]
        .map(|(answer, told)| (answer.to_owned(), told)),
    );
    for (answer, told) in answers {
        let error = write(&host, &[&answer]).await.unwrap_err();
        let expected = "'odd' did not answer as it should (its answer could not be read: ";
        assert!(error.contains(expected) && error.contains(told), "{answer}: {error}");
        assert_eq!(call(&host, "echo", json!({"a": 0})).await, Ok(json!({"a": 0})), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_only_lacks_form_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    for answer in [
        r#"{"id":$ID,"result":{"structuredContent":7}}"#,
        r#"{"jsonrpc":"1.0","id":$ID,"result":{"structuredContent":7}}"#,
        r#"{"jsonrpc":"2.0","id":"$ID","result":{"structuredContent":7}}"#,
        r#"{"jsonrpc":"2.0","id":$ID.0,"result":{"structuredContent":7},"error":null}"#,
        "\u{ef}\u{bb}\u{bf} {\"jsonrpc\":\"2.0\",\"id\":$ID,\"result\":{\"structuredContent\":7}} \r",
    ] {
        assert_eq!(write(&host, &[answer]).await, Ok(json!(7)), "{answer}");
    }
    for (error, told) in [
        (r#"{"code":"E_ROW","message":"no such row"}"#, "no such row"),
        (r#"{"code":1e30,"message":"no such row","data":"\ud800"}"#, "no such row"),
        (r#"{"message":"no such row"}"#, "no such row"),
        (r#""no such row""#, "no such row"),
        (r#"{"oops":true}"#, r#"{"oops":true}"#),
    ] {
        let answer = format!(r#"{{"jsonrpc":"2.0","id":$ID,"result":null,"error":{error}}}"#);
        assert_eq!(write(&host, &[&answer]).await, Err(told.to_owned()), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_nesting_arrive_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    for value in ["{\"a\": 123456789012345678901234567890, \"b\":1.50}", &deep(150)] {
        let payload = payload(&host, "write", json!({"lines": [structured(value)]})).await.unwrap();
        assert_eq!(payload.as_str(), value);
    }
    for levels in [201, 100_000] {
        let error = write(&host, &[&structured(&deep(levels))]).await.unwrap_err();
        assert!(error.contains("nested deeper than 197 levels"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_to_the_call_does_not_disturb_it() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let right = structured("7");
    let other = |answer: &str| answer.replace("$ID", "4711");
    for before in [
        r#"{"id":$ID,"name":"a row that is printed"}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"\ud800"}}"#,
        r#"{"method":"notifications/message","params":{"level":"info","data":"x"}}"#,
        r#"{"jsonrpc":"2.0","id":$ID,"method":"roots/list","params":"\ud800"}"#,
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"whose?"}}"#,
        r#"{"jsonrpc":"2.0","id":1.5,"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
        r#"[{"jsonrpc":"2.0","id":$ID,"result":{}}]"#,
        "no json \u{1b}[2J \u{ff}",
        "{",
        "",
        &other(&right),
        &other(&structured("NaN")),
    ] {
        assert_eq!(write(&host, &[before, &right]).await, Ok(json!(7)), "{before}");
    }
    // The first answer counts.
    assert_eq!(write(&host, &[&right, &structured("8"), &structured("NaN")]).await, Ok(json!(7)));
    assert_eq!(call(&host, "echo", json!({})).await, Ok(json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_cannot_be_read_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    for (question, told) in [
        (r#"{"jsonrpc":"2.0","id":"q","method":"roots/list","params":"\ud800"}"#, json!(-32601)),
        (r#"{"id":"q","method":"ping"}"#, Value::Null),
    ] {
        let answer = call(&host, "ask", json!({"line": question})).await.unwrap();
        assert_eq!(answer["error"]["code"], told, "{answer}");
        assert_eq!(answer["id"], "q");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_greeting_or_list_cannot_be_read_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for manners in ["greets with NaN", "lists with NaN"] {
        let host = host(manners, folder.path());
        timeout(PATIENCE, host.settled()).await.unwrap();
        let text = host.out_of_service().join("; ");
        assert!(text.contains("does not run: its answer could not be read: expected"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_sent_as_text_and_as_structured_content_passes() {
    let folder = tempfile::tempdir().unwrap();
    let host = host("good", folder.path());
    let bytes = 70 << 20;
    let payload = payload(&host, "twice", json!({"bytes": bytes})).await.unwrap();
    assert_eq!(payload.len(), bytes + 2);
}
