//! Exports one row of a column: a value, its validity, and a bell that rings when the library frees it.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, ToByteSlice,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema};

use super::abi::FfiColumn;
use super::bell::Bell;

/// Rings for the call in `slot` when the cell that holds it is freed.
pub(super) struct Ring {
    bell: Arc<Bell>,
    slot: u32,
}

impl Ring {
    pub(super) fn new(bell: &Arc<Bell>, slot: u32) -> Self {
        Self { bell: Arc::clone(bell), slot }
    }
}

/// One value, alive until the library frees the array that points into it.
struct Cell {
    buffers: [*const c_void; 3],
    /// A number, or the two offsets of a text, in the first 8 bytes.
    fixed: [u64; 1],
    validity: u8,
    bytes: Box<[u8]>,
    ring: Option<Ring>,
}

/// The bits of a value before it is given an address.
enum Value<'a> {
    Fixed([u8; 8]),
    Bytes(&'a [u8]),
}

/// Row `row` of `column` as a column of its own; None if the column has not the type `data_type`, has no such row, or
/// is of a type that UDFs do not take.
pub(super) fn export(column: &dyn Array, data_type: &DataType, row: usize, ring: Option<Ring>) -> Option<FfiColumn> {
    if column.data_type() != data_type || row >= column.len() {
        return None;
    }
    let (format, value) = match data_type {
        DataType::Int8 => (c"c", fixed::<Int8Type>(column, row)?),
        DataType::Int16 => (c"s", fixed::<Int16Type>(column, row)?),
        DataType::Int32 => (c"i", fixed::<Int32Type>(column, row)?),
        DataType::Int64 => (c"l", fixed::<Int64Type>(column, row)?),
        DataType::UInt8 => (c"C", fixed::<UInt8Type>(column, row)?),
        DataType::UInt16 => (c"S", fixed::<UInt16Type>(column, row)?),
        DataType::UInt32 => (c"I", fixed::<UInt32Type>(column, row)?),
        DataType::UInt64 => (c"L", fixed::<UInt64Type>(column, row)?),
        DataType::Float32 => (c"f", fixed::<Float32Type>(column, row)?),
        DataType::Float64 => (c"g", fixed::<Float64Type>(column, row)?),
        DataType::Utf8 => (c"u", Value::Bytes(column.as_string_opt::<i32>()?.value(row).as_bytes())),
        DataType::Binary => (c"z", Value::Bytes(column.as_binary_opt::<i32>()?.value(row))),
        _ => return None,
    };
    Some(cell(format, value, column.is_null(row), ring))
}

/// A column of one row that no UDF reads: it only carries the ring of a call without arguments.
pub(super) fn export_ring(ring: Ring) -> FfiColumn {
    cell(c"L", Value::Fixed([0; 8]), false, Some(ring))
}

fn fixed<T: ArrowPrimitiveType>(column: &dyn Array, row: usize) -> Option<Value<'static>> {
    let value = column.as_primitive_opt::<T>()?.value(row);
    let mut bits = [0; 8];
    let bytes = value.to_byte_slice();
    bits.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(Value::Fixed(bits))
}

fn cell(format: &'static CStr, value: Value<'_>, null: bool, ring: Option<Ring>) -> FfiColumn {
    let (bits, bytes) = match value {
        Value::Fixed(bits) => (bits, None),
        // Offsets 0 and the length. A single value of 2 GiB cannot be in a column with 32-bit offsets.
        Value::Bytes(bytes) => {
            let mut offsets = [0; 8];
            offsets[4..].copy_from_slice(&(bytes.len() as i32).to_ne_bytes());
            (offsets, Some(bytes))
        }
    };
    let cell = Box::into_raw(Box::new(Cell {
        buffers: [std::ptr::null(); 3],
        fixed: [u64::from_ne_bytes(bits)],
        validity: u8::from(!null),
        bytes: bytes.unwrap_or_default().into(),
        ring,
    }));
    // SAFETY: the cell was allocated above and stays where it is until `release_cell`.
    let buffers = unsafe {
        let validity = if null { (&raw const (*cell).validity).cast() } else { std::ptr::null() };
        (*cell).buffers = [validity, (&raw const (*cell).fixed).cast(), (*cell).bytes.as_ptr().cast()];
        (&raw mut (*cell).buffers).cast()
    };
    let array = FFI_ArrowArray {
        length: 1,
        null_count: i64::from(null),
        offset: 0,
        n_buffers: if bytes.is_some() { 3 } else { 2 },
        n_children: 0,
        buffers,
        children: null_mut(),
        dictionary: null_mut(),
        release: Some(release_cell),
        private_data: cell.cast(),
    };
    let schema = FFI_ArrowSchema {
        format: format.as_ptr(),
        name: c"".as_ptr(),
        metadata: std::ptr::null(),
        flags: 2, // nullable
        n_children: 0,
        children: null_mut(),
        dictionary: null_mut(),
        release: Some(release_schema),
        private_data: null_mut(),
    };
    FfiColumn(array, schema)
}

unsafe extern "C" fn release_cell(array: *mut FFI_ArrowArray) {
    // SAFETY: the interface gives the array that was exported, whose private data is the cell, and gives it once.
    let array = unsafe { &mut *array };
    array.release = None;
    // SAFETY: as above.
    let cell = unsafe { Box::from_raw(array.private_data.cast::<Cell>()) };
    if let Some(Ring { bell, slot }) = cell.ring {
        bell.call_ended(slot);
    }
}

unsafe extern "C" fn release_schema(schema: *mut FFI_ArrowSchema) {
    // SAFETY: the interface gives the schema that was exported. It points to static data only.
    unsafe { (*schema).release = None };
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, BinaryArray, Float32Array, Int8Array, Int64Array, StringArray, UInt64Array};

    use super::*;

    #[test]
    fn a_row_of_each_width_comes_back_as_it_was() {
        let columns: [ArrayRef; 6] = [
            Arc::new(Int8Array::from(vec![Some(-1), None, Some(7)])),
            Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(7)])),
            Arc::new(UInt64Array::from(vec![Some(u64::MAX), None, Some(7)])),
            Arc::new(Float32Array::from(vec![Some(0.5), None, Some(f32::INFINITY)])),
            Arc::new(StringArray::from(vec![Some("grüße"), None, Some("")])),
            Arc::new(BinaryArray::from(vec![Some(b"\x00\xff".as_slice()), None, Some(b"")])),
        ];
        for column in columns {
            let sliced = column.slice(1, 2);
            for (column, row) in [(&column, 0), (&column, 1), (&column, 2), (&sliced, 0), (&sliced, 1)] {
                let exported = export(column, column.data_type(), row, None).expect("the row is there");
                // SAFETY: it was exported above.
                let back = unsafe { exported.import() }.expect("it is a sound column");
                assert_eq!(&back, &column.slice(row, 1));
            }
            assert!(export(&column, column.data_type(), 3, None).is_none());
            assert!(export(&column, &DataType::UInt16, 0, None).is_none());
        }
    }

    #[test]
    fn freeing_a_row_rings_for_its_call_only() {
        let bell = Bell::new(None);
        let column = Int64Array::from(vec![1]);
        let first = export(&column, &DataType::Int64, 0, Some(Ring::new(&bell, 4)));
        let _second = export_ring(Ring::new(&bell, 5));
        let mut ended = Vec::new();
        bell.take_ended(&mut ended);
        assert!(ended.is_empty());
        drop(first);
        bell.take_ended(&mut ended);
        assert_eq!(ended, [4]);
    }
}
