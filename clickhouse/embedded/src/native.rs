//! Rewrites a result in Native format for a client that states a protocol revision (`client_protocol_version`).
//!
//! The engine writes Native for revision 0. A higher revision has, before each block, the block's info, and after
//! each column's type a byte that says whether the column is serialized in a special way. Both are put in here; the
//! data of the columns is the same, and is walked over only to find where it ends.

use std::io;

use crate::exception::Exception;
use crate::native_types::{Type, Walk};

/// From this revision on each column has the byte on special serialization.
const WITH_SERIALIZATION_BYTE: u64 = 54454;

/// `is_overflows = 0`, `bucket_num = -1`, end: what ClickHouse states for a block of a result.
const BLOCK_INFO: [u8; 8] = [1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0];

/// Rewrites a stream of Native blocks. Holds one block at a time.
pub(crate) struct Revised {
    revision: u64,
    pending: Vec<u8>,
    types: Vec<(String, Type)>,
}

impl Revised {
    /// For clients of this revision; `None` for revision 0, which is what the engine writes.
    pub(crate) fn for_revision(revision: u64) -> Option<Self> {
        (revision > 0).then(|| Self { revision, pending: Vec::new(), types: Vec::new() })
    }

    /// Takes a piece of the engine's output, cut anywhere; gives the blocks that are complete.
    ///
    /// # Errors
    /// Code 48 for a type that cannot be walked over.
    pub(crate) fn push(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        self.pending.extend_from_slice(data);
        let pending = std::mem::take(&mut self.pending);
        let mut out = Vec::with_capacity(pending.len() + 64);
        let mut done = 0;
        while let Some(rest) = pending.get(done..).filter(|rest| !rest.is_empty()) {
            let mark = out.len();
            match self.block(rest, &mut out)? {
                Some(length) => done += length,
                None => {
                    out.truncate(mark);
                    break;
                }
            }
        }
        self.pending = pending.get(done..).unwrap_or_default().to_vec();
        Ok(out)
    }

    /// Checks that no block was cut.
    ///
    /// # Errors
    /// If one was.
    pub(crate) fn finish(&self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        Err(io::Error::other(Exception::system("the engine's result ends in the middle of a Native block")))
    }

    /// Rewrites the block that `input` begins with. `None` if it is not complete.
    fn block(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let mut walk = Walk::new(input);
        let (Some(columns), Some(rows)) = (walk.varint(), walk.varint()) else {
            return Ok(None);
        };
        out.extend_from_slice(&BLOCK_INFO);
        out.extend_from_slice(walk.passed());
        for _ in 0..columns {
            let start = walk.at();
            let (Some(_), Some(type_name)) = (walk.string(), walk.string()) else {
                return Ok(None);
            };
            let Some(head) = input.get(start..walk.at()) else {
                return Ok(None);
            };
            out.extend_from_slice(head);
            if self.revision >= WITH_SERIALIZATION_BYTE {
                out.push(0);
            }
            let start = walk.at();
            if rows > 0 && self.type_of(type_name)?.walk_column(&mut walk, rows).is_none() {
                return Ok(None);
            }
            out.extend_from_slice(input.get(start..walk.at()).unwrap_or_default());
        }
        Ok(Some(walk.at()))
    }

    fn type_of(&mut self, name: &[u8]) -> io::Result<&Type> {
        let name = String::from_utf8_lossy(name);
        let at = match self.types.iter().position(|(known, _)| *known == name) {
            Some(at) => at,
            None => {
                let parsed = Type::parse(&name).ok_or_else(|| {
                    io::Error::other(Exception::not_implemented(format_args!(
                        "the embedded engine cannot send a column of type {name} in Native format to a client that \
                         sets client_protocol_version; cast it (toString, or its parts), or choose another FORMAT"
                    )))
                })?;
                self.types.push((name.into_owned(), parsed));
                self.types.len() - 1
            }
        };
        self.types.get(at).map(|(_, parsed)| parsed).ok_or_else(|| io::Error::other("no such type"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_rewritten_wherever_it_is_cut() {
        // SELECT 1 AS `1`, 'ab' AS s FORMAT Native, twice.
        let block = b"\x02\x01\x011\x05UInt8\x01\x01s\x06String\x02ab";
        let revised = b"\x01\0\x02\xff\xff\xff\xff\0\x02\x01\x011\x05UInt8\0\x01\x01s\x06String\0\x02ab";
        let input = [block.as_slice(), block].concat();
        let expected = [revised.as_slice(), revised].concat();
        for size in 1..=input.len() {
            let mut rewriting = Revised::for_revision(54484).unwrap();
            let mut out = Vec::new();
            for piece in input.chunks(size) {
                out.extend(rewriting.push(piece).unwrap());
            }
            rewriting.finish().unwrap();
            assert_eq!(out, expected, "pieces of {size}");
        }
        let mut rewriting = Revised::for_revision(54405).unwrap();
        assert_eq!(rewriting.push(block).unwrap(), [BLOCK_INFO.as_slice(), block].concat());
        assert!(Revised::for_revision(0).is_none());
    }

    #[test]
    fn a_type_that_cannot_be_walked_is_named() {
        let mut rewriting = Revised::for_revision(54484).unwrap();
        let error = rewriting.push(b"\x01\x01\x01j\x04JSON\0\0\0").unwrap_err();
        assert!(error.to_string().contains("type JSON"), "{error}");
    }
}
