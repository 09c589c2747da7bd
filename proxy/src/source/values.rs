//! What scalars mean: numbers, durations, names of hosts. Pure text functions.

use std::{net::IpAddr, time::Duration};

/// True where an unquoted scalar is text: neither null nor bool nor number.
#[must_use]
pub fn is_word(plain: &str) -> bool {
    let keyword =
        matches!(plain, "" | "~" | "null" | "Null" | "NULL" | "true" | "True" | "TRUE" | "false" | "False" | "FALSE");
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(plain);
    let number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && (unsigned.parse::<f64>().is_ok() || radix(unsigned).is_some());
    !keyword && !number && !matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
}

/// The bools of YAML 1.1: Kubernetes' reader takes `yes` and `off` too.
#[must_use]
pub fn boolean(plain: &str) -> Option<bool> {
    match plain {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Some(false),
        _ => None,
    }
}

/// A whole number: decimal, `0x`/`0o`, or a float without fraction as JSON writers make them (`443.0`, `1e3`). A leading
/// zero is refused: it is octal to one YAML and decimal to the next.
#[must_use]
pub fn whole(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = if let Some(value) = radix(digits) {
        value
    } else if digits.len() > 1 && digits.starts_with('0') && !digits.contains('.') {
        return None;
    } else if digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.parse().ok()?
    } else {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let float: f64 = digits.parse().ok()?;
        if float.fract() != 0.0 || !(0.0..EXACT).contains(&float) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
        let value = float as i64;
        value
    };
    Some(if negative { -value } else { value })
}

fn radix(digits: &str) -> Option<i64> {
    let (digits, base) = match digits.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None => (digits.strip_prefix("0o")?, 8),
    };
    if digits.starts_with(['+', '-']) { None } else { i64::from_str_radix(digits, base).ok() }
}

/// Go's `time.ParseDuration`, which Istio reads durations with: `1h30m`, `1.5s`, `100ms`, `0`. Not negative.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, mut tail) = rest.split_at(end);
        let mut fraction = "";
        if let Some(after) = tail.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            (fraction, tail) = after.split_at(end);
        }
        if whole.is_empty() && fraction.is_empty() || whole.len() > 19 {
            return None;
        }
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, after) = tail.split_at(end);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        nanos += if whole.is_empty() { 0 } else { whole.parse::<u128>().ok()? } * unit;
        let mut scale = unit;
        for digit in fraction.bytes() {
            scale /= 10;
            nanos += u128::from(digit - b'0') * scale;
        }
        if nanos > i64::MAX as u128 {
            return None;
        }
        rest = after;
    }
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// A DNS name as Istio takes it: labels of letters, digits and `-`, a trailing dot allowed, the last label not all digits.
///
/// # Errors
/// What is wrong with it, to be read after the name.
pub fn dns_name(name: &str) -> Result<(), String> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    if name.parse::<IpAddr>().is_ok() {
        return Err("is an IP address, not a name".to_owned());
    }
    if bare.is_empty() || bare.len() > 253 {
        return Err("must have 1 to 253 characters".to_owned());
    }
    if let Some(label) = bare.split('.').find(|label| !dns_label(label)) {
        return Err(format!("has the label \"{label}\": letters, digits and `-` inside only, 1 to 63 of them"));
    }
    if bare.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err("ends in a label of digits only".to_owned());
    }
    Ok(())
}

/// A DNS name, or one after `*.`, or `*`.
///
/// # Errors
/// What is wrong with it, to be read after the name.
pub fn host_pattern(name: &str) -> Result<(), String> {
    if name == "*" {
        return Ok(());
    }
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.contains('*') {
        return Err("has `*` elsewhere than as its whole first label".to_owned());
    }
    dns_name(rest)
}

/// One label of a DNS name (RFC 1123).
#[must_use]
pub fn dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A name of a Kubernetes object (RFC 1123 subdomain): lower case.
#[must_use]
pub fn object_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(dns_label) && !name.bytes().any(|b| b.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let ms = |n| Some(Duration::from_millis(n));
        let cases = [
            ("10s", ms(10_000)),
            ("1.5s", ms(1500)),
            ("100ms", ms(100)),
            ("1h30m", ms(5_400_000)),
            ("1m0.5s", ms(60_500)),
            (".5s", ms(500)),
            ("0", ms(0)),
            ("0s", ms(0)),
            ("1500us", Some(Duration::from_micros(1500))),
            ("10", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1 s", None),
            ("1d", None),
            ("1..5s", None),
            ("99999999999999999999s", None),
            ("9999999h", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text), expected, "{text}");
        }
    }

    #[test]
    fn whole_numbers_and_words() {
        let cases = [
            ("80", Some(80)),
            ("-1", Some(-1)),
            ("+7", Some(7)),
            ("443.0", Some(443)),
            ("1e3", Some(1000)),
            ("0x1bb", Some(443)),
            ("0o17", Some(15)),
            ("0", Some(0)),
            ("0080", None),
            ("1.5", None),
            ("0x+1", None),
            ("1e300", None),
            ("99999999999999999999", None),
            ("nan", None),
            ("", None),
            ("--1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(whole(text), expected, "{text}");
        }
        for word in
            ["edition.cnn.com", "10.0.0.1", "1h30m", "v1", "no", "*.a", "2024-01-01T00:00:00Z", "inf", "-", "1.2.3"]
        {
            assert!(is_word(word), "{word}");
        }
        for other in ["", "~", "null", "true", "False", "1", "1.5", "-3", "1e9", "0x10", ".5", ".inf", "+1"] {
            assert!(!is_word(other), "{other}");
        }
    }

    #[test]
    fn names_of_hosts() {
        for good in ["a", "edition.cnn.com", "a.b.", "*.b.c", "*", "xn--bcher-kva.example", "1a.2b", "A.B"] {
            assert_eq!(host_pattern(good), Ok(()), "{good}");
        }
        let long = format!("{}.com", "a".repeat(64));
        for bad in [
            "", ".", "a..b", "-a.b", "a-.b", "a_b.c", "a.*.b", "**.b", "*.", "10.0.0.1", "::1", "a.123", "a b", "a:80",
            &long,
        ] {
            assert!(host_pattern(bad).is_err(), "{bad}");
        }
    }
}
