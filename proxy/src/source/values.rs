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
