//! Where a request body ends: by Content-Length, or chunk by chunk (RFC 9112 section 7.1), read strictly.

use super::head_rules::{Violation, is_token};
use crate::limits;

/// Position within one request body. Feed it bytes as they come, cut anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// This many bytes are still to come; 0: the body has ended.
    Length(u64),
    /// In the digits of a chunk size.
    Size {
        size: u64,
        digits: u8,
    },
    /// In the rest of the size line (an extension, ignored); `bytes` of it so far.
    Extension {
        size: u64,
        bytes: u32,
    },
    /// The size line's CR was read.
    SizeLf {
        size: u64,
    },
    /// In chunk data.
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a trailer line or of the final empty line.
    TrailerStart {
        lines: u32,
        bytes: u32,
    },
    TrailerName {
        lines: u32,
        bytes: u32,
    },
    TrailerValue {
        lines: u32,
        bytes: u32,
    },
    TrailerLf {
        lines: u32,
        bytes: u32,
    },
    FinalLf,
}

/// A piece of a body: so many bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Chunk sizes and line ends.
    Frame(usize),
    Data(usize),
    /// Trailer lines, or a part of them; the last ends with an empty line.
    Trailers(usize),
}

impl Framing {
    pub fn length(bytes: u64) -> Self {
        Self { state: State::Length(bytes) }
    }

    pub fn chunked() -> Self {
        Self { state: State::Size { size: 0, digits: 0 } }
    }

    pub fn ended(&self) -> bool {
        self.state == State::Length(0)
    }

    /// Bytes that are still to come, where that was told.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Passes over the next piece of the body in `bytes`, which are not empty.
    pub fn piece(&mut self, bytes: &[u8]) -> Result<Piece, Violation> {
        if let State::Length(left) | State::Data(left) = &mut self.state {
            let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= length as u64;
            if self.state == State::Data(0) {
                self.state = State::DataCr;
            }
            return Ok(Piece::Data(length));
        }
        let trailers = self.in_trailers();
        let mut at = 0;
        while at < bytes.len() && !matches!(self.state, State::Length(_) | State::Data(_)) {
            if self.in_trailers() != trailers {
                break;
            }
            self.state = self.state.step(bytes[at])?;
            at += 1;
        }
        Ok(if trailers { Piece::Trailers(at) } else { Piece::Frame(at) })
    }

    fn in_trailers(&self) -> bool {
        matches!(
            self.state,
            State::TrailerStart { .. }
                | State::TrailerName { .. }
                | State::TrailerValue { .. }
                | State::TrailerLf { .. }
                | State::FinalLf
        )
    }

    /// How many of `bytes` belong to this body. Fewer than all: the body has ended there.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let mut at = 0;
        while at < bytes.len() && !self.ended() {
            match &mut self.state {
                State::Length(left) | State::Data(left) => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    *left -= step as u64;
                    at += step;
                    if self.state == State::Data(0) {
                        self.state = State::DataCr;
                    }
                }
                _ => {
                    self.state = self.state.step(bytes[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }
}

impl State {
    fn step(self, byte: u8) -> Result<Self, Violation> {
        Ok(match (self, byte) {
            (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                // 15 digits are 2^60 bytes: no chunk is that long, and no sum of two overflows.
                let digit = char::from(byte).to_digit(16).ok_or(Violation::Chunk)?;
                if digits >= 15 {
                    return Err(Violation::Chunk);
                }
                Self::Size { size: size * 16 + u64::from(digit), digits: digits + 1 }
            }
            (Self::Size { size, digits: 1.. }, b'\r') => Self::SizeLf { size },
            (Self::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => Self::Extension { size, bytes: 0 },
            (Self::Extension { size, .. }, b'\r') => Self::SizeLf { size },
            (Self::Extension { size, bytes }, b'\t' | b' '..=b'~' | 0x80..) => {
                // Each chunk may bear one, so a long one only serves to burn memory and time.
                if bytes >= 1024 {
                    return Err(Violation::Chunk);
                }
                Self::Extension { size, bytes: bytes + 1 }
            }
            (Self::SizeLf { size: 0 }, b'\n') => Self::TrailerStart { lines: 0, bytes: 0 },
            (Self::SizeLf { size }, b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::TrailerStart { .. }, b'\r') => Self::FinalLf,
            (Self::FinalLf, b'\n') => Self::Length(0),
            (Self::TrailerStart { lines, bytes }, _) if is_token(byte) => {
                trailer_room(lines + 1, bytes)?;
                Self::TrailerName { lines: lines + 1, bytes: bytes + 1 }
            }
            (Self::TrailerName { lines, bytes }, b':') => Self::TrailerValue { lines, bytes },
            (Self::TrailerName { lines, bytes }, _) if is_token(byte) => {
                trailer_room(lines, bytes)?;
                Self::TrailerName { lines, bytes: bytes + 1 }
            }
            (Self::TrailerValue { lines, bytes }, b'\r') => Self::TrailerLf { lines, bytes },
            (Self::TrailerValue { lines, bytes }, b'\t' | b' '..=b'~' | 0x80..) => {
                trailer_room(lines, bytes)?;
                Self::TrailerValue { lines, bytes: bytes + 1 }
            }
            (Self::TrailerLf { lines, bytes }, b'\n') => Self::TrailerStart { lines, bytes },
            _ => return Err(Violation::Chunk),
        })
    }
}

fn trailer_room(lines: u32, bytes: u32) -> Result<(), Violation> {
    if lines as usize > limits::HEAD_FIELDS || bytes as usize >= limits::TRAILER_BYTES {
        return Err(Violation::TooLarge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng, rngs::StdRng};

    use super::*;

    /// The length of the body that `bytes` begin with, read in pieces cut at random.
    fn measure(mut framing: Framing, bytes: &[u8], random: &mut StdRng) -> Result<Option<usize>, Violation> {
        let mut at = 0;
        while at < bytes.len() && !framing.ended() {
            let piece = &bytes[at..bytes.len().min(at + random.random_range(1..=7))];
            let used = framing.advance(piece)?;
            assert!(used == piece.len() || framing.ended());
            at += used;
        }
        Ok(framing.ended().then_some(at))
    }

    #[test]
    fn bodies_end_where_they_end_however_they_are_cut() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..2000 {
            let mut body = Vec::new();
            for _ in 0..random.random_range(0..4) {
                let size = random.random_range(1..40_usize);
                let extension = [";a=b", " ; x=\"y\"", ""][random.random_range(0..3)];
                body.extend_from_slice(format!("{size:x}{extension}\r\n").as_bytes());
                body.extend((0..size).map(|_| random.random::<u8>()));
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice([&b"0\r\n\r\n"[..], b"00;x\r\nA: b\r\nC:\r\n\r\n"][random.random_range(0..2)]);
            let length = body.len();
            body.extend_from_slice(b"GET / HTTP/1.1\r\n");
            assert_eq!(measure(Framing::chunked(), &body, &mut random), Ok(Some(length)));
            let shorter = random.random_range(1..length);
            assert_eq!(measure(Framing::chunked(), &body[..shorter], &mut random), Ok(None));
            let told = random.random_range(0..length as u64);
            assert_eq!(measure(Framing::length(told), &body, &mut random), Ok(Some(told as usize)));
        }
    }

    #[test]
    fn bad_chunks_are_refused_however_they_are_cut() {
        let mut random = StdRng::seed_from_u64(2);
        for bad in [
            &b"\r\n"[..],
            b";x\r\n",
            b" 5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"-1\r\n",
            b"g\r\n",
            b"5\nhello\r\n",
            b"5\rhello\r\n",
            b"5\r\nhello0\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n",
            b"5;a\x00\r\nhello\r\n",
            b"1000000000000000\r\n",
            b"0\r\nbad trailer: x\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\n\n",
            b"0\r\nA: \x01\r\n\r\n",
        ] {
            for _ in 0..20 {
                assert_eq!(measure(Framing::chunked(), bad, &mut random), Err(Violation::Chunk), "{bad:?}");
            }
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let mut random = StdRng::seed_from_u64(3);
        let extension = format!("5;{}", "x".repeat(2000));
        assert_eq!(measure(Framing::chunked(), extension.as_bytes(), &mut random), Err(Violation::Chunk));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(limits::HEAD_FIELDS + 1));
        assert_eq!(measure(Framing::chunked(), trailers.as_bytes(), &mut random), Err(Violation::TooLarge));
    }
}
