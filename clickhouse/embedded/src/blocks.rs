//! ClickHouse's own compressed blocks (`compress=1`, `decompress=1`): a CityHash 1.0.2 checksum, a method, two sizes,
//! and the data.

use std::io::{self, Read};

use crate::exception::Exception;

const CHECKSUM: usize = 16;
const HEADER: usize = 9;
const LZ4: u8 = 0x82;
const ZSTD: u8 = 0x90;
const NONE: u8 = 0x02;

/// Larger blocks are refused; ClickHouse's clients send blocks of a few MB at most.
const LARGEST: u32 = 256 << 20;

/// Appends `data` as one LZ4 block to `out`.
pub(crate) fn write_block(data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let start = out.len();
    let body = start + CHECKSUM + HEADER;
    out.resize(body + lz4_flex::block::get_maximum_output_size(data.len()), 0);
    let target = out.get_mut(body..).unwrap_or_default();
    let packed = lz4_flex::block::compress_into(data, target).map_err(io::Error::other)?;
    out.truncate(body + packed);
    let too_large = |_| io::Error::other("a block of more than 4 GiB");
    let packed = u32::try_from(packed + HEADER).map_err(too_large)?;
    let unpacked = u32::try_from(data.len()).map_err(too_large)?;
    if let Some((method, sizes)) = out.get_mut(start + CHECKSUM..body).and_then(<[u8]>::split_first_mut) {
        *method = LZ4;
        let (first, second) = sizes.split_at_mut(4);
        first.copy_from_slice(&packed.to_le_bytes());
        second.copy_from_slice(&unpacked.to_le_bytes());
    }
    let sum = checksum(out.get(start + CHECKSUM..).unwrap_or_default());
    if let Some(place) = out.get_mut(start..start + CHECKSUM) {
        place.copy_from_slice(&sum);
    }
    Ok(())
}

/// The bytes of the checksum: the two halves of the hash in ClickHouse's order.
fn checksum(data: &[u8]) -> [u8; CHECKSUM] {
    cityhash_rs::cityhash_102_128(data).rotate_right(64).to_le_bytes()
}

/// Reads blocks and gives their data; holds one block at a time.
pub(crate) struct BlockReader<R> {
    inner: R,
    packed: Vec<u8>,
    data: Vec<u8>,
    at: usize,
}

impl<R: Read> BlockReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, packed: Vec::new(), data: Vec::new(), at: 0 }
    }

    /// Reads the next block. False at the end, which is only between blocks.
    fn next_block(&mut self) -> io::Result<bool> {
        let mut head = [0_u8; CHECKSUM + HEADER];
        match fill(&mut self.inner, &mut head)? {
            0 => return Ok(false),
            got if got < head.len() => return Err(cut_off()),
            _ => {}
        }
        let (sum, header) = head.split_at(CHECKSUM);
        let (method, sizes) = header.split_first().ok_or_else(cut_off)?;
        let (packed, unpacked) = sizes.split_at(4);
        let size = |bytes: &[u8]| bytes.iter().rev().fold(0_u32, |size, byte| size << 8 | u32::from(*byte));
        let (packed, unpacked) = (size(packed), size(unpacked));
        if packed > LARGEST || unpacked > LARGEST || (packed as usize) < HEADER {
            return Err(io::Error::other(Exception::cannot_decompress(format_args!(
                "a compressed block in the request's body states sizes that cannot be: {packed} and {unpacked} bytes; \
                 is the body in ClickHouse's compressed format, as decompress=1 says?"
            ))));
        }
        self.packed.clear();
        self.packed.extend_from_slice(header);
        self.packed.resize(packed as usize, 0);
        let body = self.packed.get_mut(HEADER..).unwrap_or_default();
        if fill(&mut self.inner, body)? < body.len() {
            return Err(cut_off());
        }
        if checksum(&self.packed) != sum {
            return Err(io::Error::other(Exception::checksum_mismatch(
                "Checksum doesn't match: corrupted data in a compressed block of the request's body",
            )));
        }
        self.at = 0;
        self.data.clear();
        let body = self.packed.get(HEADER..).unwrap_or_default();
        unpack(*method, body, unpacked as usize, &mut self.data)?;
        Ok(true)
    }
}

fn unpack(method: u8, body: &[u8], unpacked: usize, data: &mut Vec<u8>) -> io::Result<()> {
    let wrong = |reason: &dyn std::fmt::Display| {
        io::Error::other(Exception::cannot_decompress(format_args!("cannot decompress the request's body: {reason}")))
    };
    data.resize(unpacked, 0);
    let written = match method {
        LZ4 => lz4_flex::block::decompress_into(body, data).map_err(|error| wrong(&error))?,
        ZSTD => zstd::bulk::decompress_to_buffer(body, data.as_mut_slice()).map_err(|error| wrong(&error))?,
        NONE => {
            data.clear();
            data.extend_from_slice(body);
            body.len()
        }
        other => {
            return Err(io::Error::other(Exception::unknown_compression(format_args!(
                "Unknown compression method 0x{other:02x} in the request's body (LZ4, ZSTD and NONE are known)"
            ))));
        }
    };
    if written == unpacked { Ok(()) } else { Err(wrong(&"a block is not of the size it states")) }
}

/// Reads until `buffer` is full or the input ends; gives how much was read.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn cut_off() -> io::Error {
    io::Error::other(Exception::unexpected_end("the request's body ends in the middle of a compressed block"))
}

impl<R: Read> Read for BlockReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.data.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let rest = self.data.get(self.at..).unwrap_or_default();
        let length = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(parts: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for part in parts {
            write_block(part, &mut out).unwrap();
        }
        out
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        BlockReader::new(bytes).read_to_end(&mut data)?;
        Ok(data)
    }

    #[test]
    fn blocks_come_back_as_they_went_in() {
        let large = vec![7_u8; 3 << 20];
        let bytes = blocks(&[b"abc", b"", &large]);
        let mut expected = b"abc".to_vec();
        expected.extend_from_slice(&large);
        assert_eq!(unpacked(&bytes).unwrap(), expected);
        assert_eq!(unpacked(b"").unwrap(), b"");
    }

    #[test]
    fn a_block_has_clickhouse_s_layout() {
        let bytes = blocks(&[b"1\n"]);
        // After the checksum: LZ4, the packed size with this header, the unpacked size, two literals.
        assert_eq!(&bytes[16..], [0x82, 12, 0, 0, 0, 2, 0, 0, 0, 0x20, b'1', b'\n']);
    }

    #[test]
    fn every_cut_is_noticed_and_so_is_every_flipped_byte() {
        let bytes = blocks(&[b"some text, some text, some text"]);
        for length in 1..bytes.len() {
            assert!(unpacked(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            assert!(unpacked(&broken).is_err(), "{at}");
        }
    }
}
