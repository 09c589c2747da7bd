//! Byte queues whose memory comes from the thread and goes back to it: a connection has some only while bytes are under way,
//! and none is allocated, or filled with zeros, for every few bytes.

use std::{cell::RefCell, mem};

use crate::limits::{TLS_BUFFER, TLS_BUFFERS_SPARE};

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes between a front that is taken and a back that is added to.
#[derive(Default)]
pub(super) struct Buffer {
    /// Its whole length can be written to; what lies outside `start..end` means nothing.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for Buffer {
    /// What is in it is for nobody's log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.len()).finish_non_exhaustive()
    }
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Takes bytes from the front; the memory goes back with the last one.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count.min(self.len());
        if self.is_empty() {
            self.release();
        }
    }

    /// Room for at least so many bytes at the back, to be followed by [`Self::added`].
    pub(super) fn room(&mut self, least: usize) -> &mut [u8] {
        if self.bytes.len() - self.end < least {
            self.make_room(least);
        }
        &mut self.bytes[self.end..]
    }

    pub(super) fn added(&mut self, count: usize) {
        self.end = self.bytes.len().min(self.end + count);
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.added(bytes.len());
    }

    /// Nothing more comes for now: what is left needs memory of its own size only.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            self.release();
        } else if self.bytes.len() >= TLS_BUFFER && self.len() < TLS_BUFFER / 4 {
            let left = self.filled().to_vec();
            self.release();
            self.end = left.len();
            self.bytes = left;
        }
    }

    fn make_room(&mut self, least: usize) {
        let len = self.len();
        if self.bytes.len() >= TLS_BUFFER && self.bytes.len() - len >= least {
            self.bytes.copy_within(self.start..self.end, 0);
        } else {
            let mut new = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten().unwrap_or_default();
            if new.len() < len + least {
                new.resize((len + least).max(TLS_BUFFER), 0);
            }
            new[..len].copy_from_slice(self.filled());
            self.release();
            self.bytes = new;
        }
        (self.start, self.end) = (0, len);
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        let bytes = mem::take(&mut self.bytes);
        if bytes.len() == TLS_BUFFER {
            // Not there any more while the thread ends.
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < TLS_BUFFERS_SPARE {
                    spare.push(bytes);
                }
            });
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut buffer = Buffer::default();
        let data: Vec<u8> = (0..3 * TLS_BUFFER).map(|i| (i * 7 % 251) as u8).collect();
        let (mut put, mut got) = (0, Vec::new());
        for step in 1.. {
            let next = (put + 1 + step * 37 % 9000).min(data.len());
            buffer.push(&data[put..next]);
            put = next;
            let take = (step * 53 % 9500).min(buffer.len());
            got.extend_from_slice(&buffer.filled()[..take]);
            buffer.consume(take);
            if step % 5 == 0 {
                buffer.rest();
            }
            if put == data.len() {
                break;
            }
        }
        got.extend_from_slice(buffer.filled());
        assert!(got == data);
    }

    #[test]
    fn memory_is_held_only_while_bytes_are() {
        let mut buffer = Buffer::default();
        buffer.push(&[1; 100]);
        assert_eq!(buffer.bytes.len(), TLS_BUFFER);
        buffer.rest();
        assert_eq!((buffer.bytes.len(), buffer.filled()), (100, &[1; 100][..]));
        buffer.push(&[2; 10]);
        assert_eq!((buffer.filled()[99], buffer.filled()[100]), (1, 2));
        buffer.consume(110);
        assert!(buffer.bytes.is_empty());
    }

    #[test]
    fn more_than_one_buffer_full_is_held_too() {
        let mut buffer = Buffer::default();
        buffer.push(&[1; TLS_BUFFER]);
        buffer.push(&[2; TLS_BUFFER]);
        assert_eq!(buffer.len(), 2 * TLS_BUFFER);
        buffer.consume(2 * TLS_BUFFER);
        SPARE.with(|spare| assert!(spare.borrow().iter().all(|spare| spare.len() == TLS_BUFFER)));
    }
}
