//! Values that the agent makes itself, written straight into the line: nothing in them needs an escape.

use std::{
    cell::RefCell,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use uuid::Uuid;

/// What is of digits, letters and a few signs.
#[derive(Clone, Copy, Debug)]
pub enum Plain {
    Address(SocketAddr),
    Ip(IpAddr),
    /// `2006-01-02T15:04:05.000Z`
    Time(SystemTime),
    /// A number that a header bears: in JSON a string, too.
    Digits(u64),
    Word(&'static str),
    Id(Uuid),
}

impl Plain {
    pub fn write(&self, line: &mut Vec<u8>) {
        match self {
            Self::Address(address) => {
                match address.ip() {
                    IpAddr::V4(ip) => v4(ip, line),
                    // With its scope: the library's own form. Writing to a vector cannot fail.
                    IpAddr::V6(_) => return drop(write!(line, "{address}")),
                }
                line.push(b':');
                number(address.port().into(), line);
            }
            Self::Ip(IpAddr::V4(ip)) => v4(*ip, line),
            Self::Ip(IpAddr::V6(ip)) => drop(write!(line, "{ip}")),
            Self::Time(time) => timestamp(*time, line),
            Self::Digits(digits) => number(*digits, line),
            Self::Id(id) => line.extend_from_slice(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes()),
            Self::Word(word) => line.extend_from_slice(word.as_bytes()),
        }
    }
}

pub fn number(number: u64, line: &mut Vec<u8>) {
    line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn v4(ip: Ipv4Addr, line: &mut Vec<u8>) {
    for (index, octet) in ip.octets().into_iter().enumerate() {
        if index > 0 {
            line.push(b'.');
        }
        line.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
    }
}

/// Seconds since 1970, and their text up to the seconds.
struct Second {
    number: u64,
    text: String,
}

/// What a calendar is needed for changes once a second.
fn timestamp(time: SystemTime, line: &mut Vec<u8>) {
    thread_local! {
        static SECOND: RefCell<Second> = const { RefCell::new(Second { number: u64::MAX, text: String::new() }) };
    }
    let Ok(since) = time.duration_since(UNIX_EPOCH) else { return calendar(time, line) };
    SECOND.with_borrow_mut(|second| {
        if second.number != since.as_secs() {
            let whole = i64::try_from(since.as_secs()).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
            let Some(whole) = whole else { return line.push(b'-') };
            *second = Second { number: since.as_secs(), text: format!("{whole:.0}").replace('Z', ".") };
        }
        line.extend_from_slice(second.text.as_bytes());
        let millis = since.subsec_millis();
        let digit = |of: u32| b'0' + (of % 10) as u8;
        line.extend_from_slice(&[digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
    });
}

/// Of a clock that is set to before 1970.
fn calendar(time: SystemTime, line: &mut Vec<u8>) {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => drop(write!(line, "{time:.3}")),
        Err(_) => line.push(b'-'),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(plain: Plain) -> String {
        let mut line = Vec::new();
        plain.write(&mut line);
        String::from_utf8(line).unwrap()
    }

    /// What is written by hand is what the libraries write.
    #[test]
    fn addresses_and_times_have_their_usual_form() {
        for address in
            ["0.0.0.0:0", "255.255.255.255:65535", "10.0.0.2:443", "[::1]:80", "[fe80::1%3]:9", "[::ffff:10.0.0.1]:1"]
        {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(written(Plain::Address(address)), address.to_string());
            assert_eq!(written(Plain::Ip(address.ip())), address.ip().to_string());
        }
        let start = Duration::from_millis(1_767_323_045_678);
        for after in [0, 1, 321, 322, 999, 1000, 1321, 86_400_000, 31_536_000_000, 4, 250_000_000_000_000] {
            let time = UNIX_EPOCH + start + Duration::from_millis(after);
            let expected = format!("{:.3}", jiff::Timestamp::try_from(time).unwrap());
            assert_eq!(written(Plain::Time(time)), expected);
        }
        let early = UNIX_EPOCH - Duration::from_millis(1500);
        assert_eq!(written(Plain::Time(early)), "1969-12-31T23:59:58.500Z");
    }
}
