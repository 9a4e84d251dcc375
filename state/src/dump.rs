//! A record as people and scripts read it.

use serde::de::IgnoredAny;

use crate::store::Entry;

/// One line of JSON: `{"key":"...","value":...}`. A value that is JSON stands there as it is, whatever its version; what is
/// none is a string under `text`, with � for what is no UTF-8.
#[must_use]
pub fn line((key, value): &Entry) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let key = quoted(&key.0);
    match (serde_json::from_slice::<IgnoredAny>(value), str::from_utf8(value)) {
        // Between the words of JSON a line feed is but a space; within a string there is none.
        (Ok(_), Ok(text)) => format!(r#"{{"key":{key},"value":{}}}"#, text.trim().replace(['\n', '\r'], " ")),
        _ => format!(r#"{{"key":{key},"text":{}}}"#, quoted(&String::from_utf8_lossy(value))),
    }
}

#[cfg(test)]
mod tests {
    use super::line;
    use crate::store::Key;

    #[test]
    fn a_value_stands_there_as_it_is() {
        for (key, value, expected) in [
            (
                "placement",
                &br#"{"v":1,"b":2,"a":[1]}"#[..],
                r#"{"key":"placement","value":{"v":1,"b":2,"a":[1]}}"#,
            ),
            (
                "new",
                br#"{"v":99,"big":18446744073709551616}"#,
                r#"{"key":"new","value":{"v":99,"big":18446744073709551616}}"#,
            ),
            ("lines", b"{\"a\":\r\n \"x\\ny\"}\n", "{\"key\":\"lines\",\"value\":{\"a\":   \"x\\ny\"}}"),
            ("a\"b\n", b"{", r#"{"key":"a\"b\n","text":"{"}"#),
            ("bytes", b"\xff\0", "{\"key\":\"bytes\",\"text\":\"\u{fffd}\\u0000\"}"),
            ("empty", b"", r#"{"key":"empty","text":""}"#),
        ] {
            let line = line(&(Key::from(key), value.to_vec()));
            assert_eq!(line, expected);
            assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
        }
    }
}
