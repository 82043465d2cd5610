//! The bytes of a result on their way out: ClickHouse's own blocks (`compress=1`), then the HTTP content encoding.

use std::io::{self, Write};

use bytes::Bytes;

use crate::blocks::write_block;
use crate::body::Encoding;
use crate::native::Revised;

/// The size that ClickHouse gives its compressed blocks.
const BLOCK: usize = 1 << 20;

/// Encodes a result piece by piece; holds at most one block.
pub(crate) struct ResponseEncoder {
    revised: Option<Revised>,
    blocks: Option<Vec<u8>>,
    outer: Outer,
}

enum Outer {
    Identity(Vec<u8>),
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Deflate(flate2::write::ZlibEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Lz4(lz4_flex::frame::FrameEncoder<Vec<u8>>),
    Finished,
}

impl ResponseEncoder {
    /// `revised` rewrites a result in Native format for the client's protocol revision, before anything else.
    ///
    /// # Errors
    /// If the encoder cannot be made.
    pub(crate) fn new(revised: Option<Revised>, blocks: bool, encoding: Encoding) -> io::Result<Self> {
        let fast = flate2::Compression::new(3);
        let outer = match encoding {
            Encoding::Identity => Outer::Identity(Vec::new()),
            Encoding::Gzip => Outer::Gzip(flate2::write::GzEncoder::new(Vec::new(), fast)),
            Encoding::Deflate => Outer::Deflate(flate2::write::ZlibEncoder::new(Vec::new(), fast)),
            Encoding::Zstd => Outer::Zstd(zstd::stream::write::Encoder::new(Vec::new(), 1)?),
            Encoding::Lz4 => Outer::Lz4(lz4_flex::frame::FrameEncoder::new(Vec::new())),
        };
        Ok(Self { revised, blocks: blocks.then(Vec::new), outer })
    }

    /// Encodes `data`; gives what is ready, which may be nothing.
    ///
    /// # Errors
    /// If the result is not what its format says, or an encoder fails.
    pub(crate) fn push(&mut self, data: &[u8]) -> io::Result<Bytes> {
        match &mut self.revised {
            Some(revised) => {
                let data = revised.push(data)?;
                self.push_revised(&data)?;
            }
            None => self.push_revised(data)?,
        }
        self.outer.take()
    }

    fn push_revised(&mut self, data: &[u8]) -> io::Result<()> {
        let Some(block) = &mut self.blocks else {
            return self.outer.write(data);
        };
        block.extend_from_slice(data);
        let mut packed = Vec::new();
        let mut done = 0;
        while let Some(full) = block.get(done..done + BLOCK) {
            write_block(full, &mut packed)?;
            done += BLOCK;
        }
        block.drain(..done);
        self.outer.write(&packed)
    }

    /// Ends the encoding, with `last` as a block of its own if it is not empty.
    ///
    /// # Errors
    /// As [`ResponseEncoder::push`], and if the result ends too early.
    pub(crate) fn finish(&mut self, last: &[u8]) -> io::Result<Bytes> {
        if let Some(revised) = &self.revised
            && last.is_empty()
        {
            revised.finish()?;
        }
        if let Some(block) = self.blocks.take() {
            let mut packed = Vec::new();
            for part in [block.as_slice(), last].into_iter().filter(|part| !part.is_empty()) {
                write_block(part, &mut packed)?;
            }
            self.outer.write(&packed)?;
        } else {
            self.outer.write(last)?;
        }
        self.outer.finish()
    }
}

impl Outer {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Identity(out) => out.write_all(data),
            Self::Gzip(encoder) => encoder.write_all(data),
            Self::Deflate(encoder) => encoder.write_all(data),
            Self::Zstd(encoder) => encoder.write_all(data),
            Self::Lz4(encoder) => encoder.write_all(data),
            Self::Finished => Err(io::Error::other("the response has ended")),
        }
    }

    fn take(&mut self) -> io::Result<Bytes> {
        let ready = match self {
            Self::Identity(out) => std::mem::take(out),
            Self::Gzip(encoder) => std::mem::take(encoder.get_mut()),
            Self::Deflate(encoder) => std::mem::take(encoder.get_mut()),
            Self::Zstd(encoder) => std::mem::take(encoder.get_mut()),
            Self::Lz4(encoder) => std::mem::take(encoder.get_mut()),
            Self::Finished => Vec::new(),
        };
        Ok(ready.into())
    }

    fn finish(&mut self) -> io::Result<Bytes> {
        let rest = match std::mem::replace(self, Self::Finished) {
            Self::Identity(out) => out,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Deflate(encoder) => encoder.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
            Self::Lz4(encoder) => encoder.finish().map_err(io::Error::other)?,
            Self::Finished => Vec::new(),
        };
        Ok(rest.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::decoded;
    use std::io::Read;

    #[test]
    fn what_is_encoded_in_pieces_is_decoded_whole() {
        let data: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Deflate, Encoding::Zstd, Encoding::Lz4] {
            for blocks in [false, true] {
                let mut encoder = ResponseEncoder::new(None, blocks, encoding).unwrap();
                let mut bytes = Vec::new();
                for piece in data.chunks(99_991) {
                    bytes.extend_from_slice(&encoder.push(piece).unwrap());
                }
                bytes.extend_from_slice(&encoder.finish(b"the end").unwrap());
                let mut out = Vec::new();
                decoded(bytes.as_slice(), encoding, blocks).unwrap().read_to_end(&mut out).unwrap();
                assert!(out.strip_suffix(b"the end") == Some(&data), "{encoding:?} {blocks}");
            }
        }
    }
}
