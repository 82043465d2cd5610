//! LZ4 frames whose end is checked: the decoder takes the end of its input for the end of a frame.

use std::io::{self, Read};

use crate::exception::Exception;

/// Reads LZ4 frames; fails if the input ends within one.
pub(crate) struct Lz4Frames<R: Read> {
    decoder: lz4_flex::frame::FrameDecoder<Walked<R>>,
}

impl<R: Read> Lz4Frames<R> {
    pub(crate) fn new(inner: R) -> Self {
        let walk = Walk { state: State::Start, head: Vec::new(), wanted: START, skip: 0, sums: (false, false) };
        Self { decoder: lz4_flex::frame::FrameDecoder::new(Walked { inner, walk }) }
    }
}

impl<R: Read> Read for Lz4Frames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(out)?;
        if read == 0 && !out.is_empty() && !self.decoder.get_ref().walk.between_frames() {
            let message = "the request's body ends in the middle of an LZ4 frame";
            return Err(io::Error::other(Exception::unexpected_end(message)));
        }
        Ok(read)
    }
}

/// Passes bytes on, and walks over the frames in them.
struct Walked<R> {
    inner: R,
    walk: Walk,
}

impl<R: Read> Read for Walked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.walk.pass(out.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// The magic number and the two bytes of flags.
const START: usize = 6;
/// A block's size.
const BLOCK: usize = 4;

#[derive(PartialEq, Eq)]
enum State {
    Start,
    Block,
}

/// Where in the frames the bytes passed so far end.
struct Walk {
    state: State,
    /// What came of the part that must be read, and how long that part is.
    head: Vec<u8>,
    wanted: usize,
    /// Bytes that follow and do not matter.
    skip: usize,
    /// Whether blocks, and whether the whole content, have a checksum.
    sums: (bool, bool),
}

impl Walk {
    fn between_frames(&self) -> bool {
        self.state == State::Start && self.head.is_empty() && self.skip == 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let length = (self.wanted - self.head.len()).min(bytes.len());
            let (part, rest) = bytes.split_at(length);
            self.head.extend_from_slice(part);
            bytes = rest;
            if self.head.len() == self.wanted {
                self.read_head();
            }
        }
    }

    fn read_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        match self.state {
            State::Start => {
                let flags = head.get(4).copied().unwrap_or_default();
                let has = |bit: u8| flags & (1 << bit) != 0;
                self.sums = (has(4), has(2));
                // The content's size, a dictionary's id, and the header's own checksum.
                self.skip = if has(3) { 8 } else { 0 } + if has(0) { 4 } else { 0 } + 1;
                (self.state, self.wanted) = (State::Block, BLOCK);
            }
            State::Block => {
                let size = head.iter().rev().fold(0_usize, |size, byte| size << 8 | usize::from(*byte));
                if size == 0 {
                    self.skip = if self.sums.1 { 4 } else { 0 };
                    (self.state, self.wanted) = (State::Start, START);
                } else {
                    // The highest bit says that the block is not compressed.
                    self.skip = (size & 0x7fff_ffff) + if self.sums.0 { 4 } else { 0 };
                }
            }
        }
    }
}
