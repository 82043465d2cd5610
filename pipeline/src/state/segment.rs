//! Rows of state as bytes, and back.
//!
//! A file is a sequence of parts: the length of the part as 8 bytes, little-endian, and an LZ4 frame around one Arrow IPC
//! stream. Two files put one behind the other are one file, so that files are merged without being understood.

use std::io::{Cursor, Read, Write};

use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use lz4_flex::frame::{FrameDecoder, FrameEncoder};
use twox_hash::XxHash64;

use super::error::Damage;

/// The checksum that is recorded of every file: XXH64 with seed 0, in hexadecimal.
pub(super) fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", XxHash64::oneshot(0, bytes))
}

/// One part that holds `batches`, all of the schema of the first. Nothing for no batches.
pub(super) fn encode(batches: &[RecordBatch]) -> Result<Vec<u8>, String> {
    let Some(first) = batches.first() else { return Ok(Vec::new()) };
    let mut bytes = vec![0; size_of::<u64>()];
    let mut stream =
        StreamWriter::try_new(FrameEncoder::new(&mut bytes), first.schema_ref()).map_err(|e| e.to_string())?;
    for batch in batches {
        stream.write(batch).map_err(|e| e.to_string())?;
    }
    let mut frame = stream.into_inner().map_err(|e| e.to_string())?;
    frame.flush().map_err(|e| e.to_string())?;
    frame.finish().map_err(|e| e.to_string())?;
    let length = (bytes.len() - size_of::<u64>()) as u64;
    if let Some(head) = bytes.first_chunk_mut() {
        *head = length.to_le_bytes();
    }
    Ok(bytes)
}

/// The batches of a file, in the order in which they were written.
pub fn decode(mut bytes: &[u8]) -> Result<Vec<RecordBatch>, Damage> {
    let unreadable = |what: &dyn std::fmt::Display| Damage::Unreadable(what.to_string());
    let mut batches = Vec::new();
    while !bytes.is_empty() {
        let cut_short = || unreadable(&"it ends within a part");
        let (head, rest) = bytes.split_first_chunk().ok_or_else(cut_short)?;
        let length = usize::try_from(u64::from_le_bytes(*head)).map_err(|_| cut_short())?;
        let (part, rest) = rest.split_at_checked(length).ok_or_else(cut_short)?;
        let mut stream = Vec::with_capacity(length * 2);
        FrameDecoder::new(part).read_to_end(&mut stream).map_err(|e| unreadable(&e))?;
        for batch in StreamReader::try_new(Cursor::new(stream), None).map_err(|e| unreadable(&e))? {
            batches.push(batch.map_err(|e| unreadable(&e))?);
        }
        bytes = rest;
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn batch(first: i64) -> RecordBatch {
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(first), None]), None]);
        let columns: [(&str, ArrayRef); 3] = [
            ("k", Arc::new(Int64Array::from(vec![Some(first), None]))),
            ("s", Arc::new(StringArray::from(vec![None, Some("näme")]))),
            ("l", Arc::new(lists)),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    #[test]
    fn batches_come_back_in_order_and_files_can_be_joined() {
        let (a, b, c) = (batch(1), batch(2), batch(3));
        let mut file = encode(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(decode(&file).unwrap(), [a.clone(), b.clone()]);
        file.extend(encode(&[]).unwrap());
        file.extend(encode(std::slice::from_ref(&c)).unwrap());
        assert_eq!(decode(&file).unwrap(), [a, b, c]);
        assert_eq!(decode(&[]).unwrap(), []);
    }

    #[test]
    fn a_slice_is_written_without_what_lies_around_it() {
        let wide = RecordBatch::try_from_iter([(
            "k",
            Arc::new(Int64Array::from_iter_values((0..100_000).map(|n| n * 7_919 % 100_003))) as ArrayRef,
        )])
        .unwrap();
        let file = encode(&[wide.slice(500, 3)]).unwrap();
        assert!(file.len() < 1_000, "{} bytes", file.len());
        assert_eq!(decode(&file).unwrap(), [wide.slice(500, 3)]);
    }

    #[test]
    fn no_damage_is_read_as_rows() {
        let file = encode(&[batch(1)]).unwrap();
        for cut in 1..file.len() {
            assert!(decode(&file[..cut]).is_err(), "cut at {cut}");
        }
        assert_ne!(checksum(&file), checksum(&file[1..]));
    }
}
