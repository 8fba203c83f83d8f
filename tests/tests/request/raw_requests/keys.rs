//! Every byte as a key and in a key, bare and quoted; several header lines; broken quoting.

use idempotent_tests::Logs;

use crate::raw_requests::charges::{Charges, SECRET};

/// A request whose last header line is the key with these bytes.
fn request(key: &[u8]) -> Vec<u8> {
    lines(&[&[b"idempotency-key: ".as_slice(), key].concat()])
}

fn lines(lines: &[&[u8]]) -> Vec<u8> {
    let head = b"POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: 0\r\n";
    let mut bytes = head.to_vec();
    for line in lines {
        bytes.extend_from_slice(line);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Whole,
    Beginning,
    Middle,
    End,
}

impl Position {
    fn put(self, byte: u8) -> Vec<u8> {
        let text = format!("{SECRET}-{byte}-{self:?}").into_bytes();
        match self {
            Self::Whole => vec![byte],
            Self::Beginning => [&[byte], text.as_slice()].concat(),
            Self::Middle => [text.as_slice(), &[byte], b"-".as_slice()].concat(),
            Self::End => [text.as_slice(), &[byte]].concat(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Key,
    /// 400 `invalid_key`.
    Invalid,
    /// A 400 of hyper: no HTTP header may contain this byte.
    NotHttp,
}

fn bare(byte: u8, place: Position) -> Expected {
    match (byte, place) {
        // A line may end without a carriage return. So the key is empty, or lacks that byte.
        (b'\n', Position::End) | (b' ' | b'\t', Position::Beginning | Position::End) => Expected::Key,
        (b'\n', Position::Whole)
        | (b' ' | b'\t', Position::Whole | Position::Middle)
        | (b'"' | b',' | b';' | b'\\' | 0x80.., _) => Expected::Invalid,
        (0..=0x1f | 0x7f, _) => Expected::NotHttp,
        _ => Expected::Key,
    }
}

fn quoted(byte: u8, place: Position) -> Expected {
    match (byte, place) {
        (b'\t' | b'"' | b'\\' | 0x80.., _) | (b' ', Position::Whole) => Expected::Invalid,
        (0..=0x1f | 0x7f, _) => Expected::NotHttp,
        _ => Expected::Key,
    }
}

#[tokio::test]
async fn every_byte_at_every_place_of_a_key_bare_and_quoted() {
    for (spelling, is_quoted) in [("bare", false), ("quoted", true)] {
        let (logs, charges) = (Logs::collect(), Charges::start().await);
        let mut accepted = 0;
        for byte in 0..=u8::MAX {
            for place in [Position::Whole, Position::Beginning, Position::Middle, Position::End] {
                let name = format!("{byte:#04x} as {place:?} of a {spelling} key");
                let (expected, bytes) = if is_quoted {
                    (quoted(byte, place), request(&[b"\"", place.put(byte).as_slice(), b"\""].concat()))
                } else {
                    (bare(byte, place), request(&place.put(byte)))
                };
                match expected {
                    Expected::Key => {
                        accepted += 1;
                        charges.is_executed_once(&name, &bytes).await;
                    }
                    Expected::Invalid => {
                        let answer = charges.is_rejected(&name, &bytes, 400).await;
                        assert_eq!(answer.rejection(), "invalid_key", "{name}");
                    }
                    Expected::NotHttp => {
                        let answer = charges.is_rejected(&name, &bytes, 400).await;
                        assert!(answer.body.is_empty(), "{name} reached us: {answer:?}");
                    }
                }
            }
        }
        assert_eq!(charges.executions(), accepted);
        charges.is_unharmed(&logs).await;
    }
}

#[tokio::test]
async fn several_lines_of_the_header_are_always_rejected() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let key = |name: &str, value: &str| format!("{name}: {SECRET}{value}").into_bytes();
    let (lower, upper, mixed) = (key("idempotency-key", "1"), key("IDEMPOTENCY-KEY", "1"), key("iDeMpOtEnCy-KeY", "2"));
    let (empty, other) = (b"Idempotency-Key:".to_vec(), b"x: y".to_vec());
    let ninety = vec![lower.as_slice(); 90];
    let cases: &[&[&[u8]]] = &[
        &[&lower, &lower],
        &[&lower, &upper],
        &[&lower, &mixed],
        &[&mixed, &lower, &upper],
        &[&lower, &other, &upper],
        &[&lower, &empty],
        &[&empty, &lower],
        &[&empty, &empty],
        &ninety,
    ];
    for case in cases {
        let answer = charges.is_rejected("several lines", &lines(case), 400).await;
        assert_eq!(answer.rejection(), "invalid_key");
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("more than once")), "{answer:?}");
    }
    for (number, name) in ["idempotency-key", "IDEMPOTENCY-KEY", "iDeMpOtEnCy-KeY"].into_iter().enumerate() {
        charges.is_executed_once(name, &lines(&[&key(name, &format!("-alone-{number}"))])).await;
    }
    charges.is_unharmed(&logs).await;
}

#[tokio::test]
async fn broken_quoting_is_rejected_and_parameters_are_passed_over() {
    let (logs, charges) = (Logs::collect(), Charges::start().await);
    let long = format!("{SECRET}{}", "k".repeat(64 * 1024));
    let long_quoted = format!("\"{long}\"");
    let many_quotes = "\"".repeat(4096);
    let many_escapes = format!("\"{}", "\\\"".repeat(4096));
    let rejected = [
        "",
        "\"",
        "\"\"",
        "\"\"\"",
        "\"hush",
        "hush\"",
        "\"hush\"hush",
        "\"hush\" \"hush\"",
        "\"hush\", \"hush\"",
        "\"hush\\",
        "\"hush\\x\"",
        "\"hush\";",
        "\"hush\";;a",
        "\"hush\";A",
        "\"hush\";a=",
        "\"hush\";a=\"open",
        "\"hush\";a=(1 2)",
        "\"hush\" ;a",
        "(\"hush\")",
        ":aHVzaA==:;\"hush\"",
        &long,
        &long_quoted,
        &many_quotes,
        &many_escapes,
    ];
    for value in rejected {
        let name = value.get(..40).unwrap_or(value);
        let answer = charges.is_rejected(name, &request(value.as_bytes()), 400).await;
        assert_eq!(answer.rejection(), "invalid_key", "{name}");
    }
    let parameters = format!("\"hush-many\"{}", ";a=1".repeat(4096));
    let accepted = [
        "\"hush-1\";a",
        "\"hush-2\";a=1;b=?0;c=\"hush;\\\"\"",
        "\"hush-3\";a=:aHVzaA==:",
        "\"hush-4\";  a=1.5",
        "\"hush-\\\\-5\"",
        "\"hush-\\\"-6\"",
        &parameters,
    ];
    for value in accepted {
        charges.is_executed_once(value.get(..40).unwrap_or(value), &request(value.as_bytes())).await;
    }
    charges.is_unharmed(&logs).await;
}
