//! One question to the kernel over netlink(7), and its answer.

use std::io::{self, Read as _, Write as _};

use socket2::{Domain, Protocol, Socket, Type};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// More than any answer that is asked for here.
const ANSWER: usize = 512;

/// A request with its `struct nlmsghdr`: length, kind, flags, sequence, sender.
pub fn message(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Sends one request to the kernel, in the namespace that this thread is in, and returns what it answers: nothing, where it
/// has but done as it was told.
pub fn ask(protocol: i32, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
    socket.write_all(message)?;
    let mut answer = [0; ANSWER];
    let length = socket.read(&mut answer)?;
    let answer = &answer[..length];
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(short)?;
    let body = answer.get(HEADER..).ok_or_else(short)?;
    if i32::from(kind) != libc::NLMSG_ERROR {
        return Ok(body.to_vec());
    }
    // An acknowledgement is an error message too, with error 0.
    match body.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes).ok_or_else(short)? {
        0 => Ok(Vec::new()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
