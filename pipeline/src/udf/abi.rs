//! The plugin interface of `arroyo-udf-plugin` 0.2, as its libraries were compiled: its C structures, and the Arrow and
//! future structures that it passes.
//!
//! Both sides free what the other allocated with Rust's system allocator (the arrays of [`FfiArrays`]); everything else
//! carries a function that frees it. A UDF library must therefore not set a global allocator of its own.

use std::alloc::{GlobalAlloc, Layout, System, handle_alloc_error};
use std::ffi::c_void;
use std::sync::Arc;

use arrow::array::{ArrayData, ArrayRef, make_array};
use arrow::error::ArrowError;
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};

use super::bell::{Bell, WakerBase};

/// One column.
#[repr(C)]
pub(super) struct FfiColumn(pub(super) FFI_ArrowArray, pub(super) FFI_ArrowSchema);

impl FfiColumn {
    pub(super) fn export(data: &ArrayData) -> Result<Self, ArrowError> {
        let (array, schema) = to_ffi(data)?;
        Ok(Self(array, schema))
    }

    /// # Safety
    /// The column must come from a UDF library: then it keeps to the C data interface.
    pub(super) unsafe fn import(self) -> Result<ArrayRef, ArrowError> {
        // SAFETY: as the caller states.
        Ok(make_array(unsafe { from_ffi(self.0, &self.1) }?))
    }
}

/// An owned array of columns: the layout of a `Vec` with a flag behind it.
#[repr(C)]
pub(super) struct FfiArrays {
    columns: *mut FfiColumn,
    len: usize,
    capacity: usize,
    error: bool,
}

impl FfiArrays {
    /// Hands columns over; whoever gets the result frees them.
    pub(super) fn export(columns: impl ExactSizeIterator<Item = FfiColumn>) -> Self {
        Self::export_some(columns.len(), columns)
    }

    /// The same with no more than `capacity` columns.
    pub(super) fn export_some(capacity: usize, columns: impl Iterator<Item = FfiColumn>) -> Self {
        let array = Self::layout(capacity).map_or(std::ptr::dangling_mut(), |layout| {
            // SAFETY: the layout is not of size zero.
            let array = unsafe { System.alloc(layout) }.cast::<FfiColumn>();
            if array.is_null() {
                handle_alloc_error(layout);
            }
            array
        });
        let mut len = 0;
        for column in columns.take(capacity) {
            // SAFETY: `len` is below the capacity of the array, which is ours.
            unsafe { array.add(len).write(column) };
            len += 1;
        }
        Self { columns: array, len, capacity, error: false }
    }

    /// Takes columns over.
    ///
    /// # Safety
    /// They must come from a UDF library.
    pub(super) unsafe fn import(self) -> Result<Vec<ArrayRef>, ArrowError> {
        let columns: Vec<FfiColumn> = (0..self.len)
            // SAFETY: the library wrote `len` columns, and each is read once.
            .map(|index| unsafe { self.columns.add(index).read() })
            .collect();
        if let Some(layout) = Self::layout(self.capacity) {
            // SAFETY: the library took the array from the system allocator with this layout.
            unsafe { System.dealloc(self.columns.cast(), layout) };
        }
        // SAFETY: as the caller states.
        columns.into_iter().map(|column| unsafe { column.import() }).collect()
    }

    /// Frees columns that were not handed over.
    pub(super) fn free(self) {
        // SAFETY: as far as memory goes, ours are like a library's.
        drop(unsafe { self.import() });
    }

    /// None if nothing is allocated.
    fn layout(capacity: usize) -> Option<Layout> {
        Layout::array::<FfiColumn>(capacity).ok().filter(|layout| layout.size() > 0)
    }
}

/// What a scalar or aggregate UDF answers.
#[repr(C)]
#[allow(dead_code, reason = "made by the libraries")]
pub(super) enum RunResult {
    /// The result column.
    Ok(FfiColumn),
    /// The UDF panicked.
    Err,
}

/// What an instance of an async UDF has ready.
#[repr(C)]
#[allow(dead_code, reason = "made by the libraries")]
pub(super) enum DrainResult {
    /// Two columns: the calls' ids and their results.
    Data(FfiArrays),
    /// Nothing.
    None,
    /// The instance panicked while it handed in a result.
    Error,
}

/// An instance of an async UDF.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Handle(*mut c_void);

// SAFETY: the plugin declares its own handle Send: it is a channel's sender and a mutex.
unsafe impl Send for Handle {}

/// `__run`: a panic within is caught by the library.
pub(super) type Run = unsafe extern "C-unwind" fn(FfiArrays) -> RunResult;

/// The entry points of an async UDF.
#[derive(Clone, Copy)]
pub(super) struct AsyncEntry {
    /// Ordered, timeout in microseconds, allowed in flight.
    pub(super) start: unsafe extern "C-unwind" fn(bool, u64, u32) -> Handle,
    /// One call: an id and one-row columns. The future is true when the call was taken.
    pub(super) send: unsafe extern "C-unwind" fn(Handle, u64, FfiArrays) -> FfiFuture,
    pub(super) drain: unsafe extern "C-unwind" fn(Handle) -> DrainResult,
    /// Ends the instance and frees the handle.
    pub(super) stop: unsafe extern "C-unwind" fn(Handle),
}

/// A `Future<Output = bool>` of the library's (the layout of `async-ffi` 0.5).
#[repr(C)]
pub(super) struct FfiFuture {
    future: *mut (),
    poll: unsafe extern "C" fn(*mut (), *mut FfiContext) -> FfiPoll,
    drop: unsafe extern "C" fn(*mut ()),
}

// SAFETY: the plugin makes it from a future that is Send.
unsafe impl Send for FfiFuture {}

// SAFETY: columns are owned, by whichever thread has them.
unsafe impl Send for FfiArrays {}

#[repr(C)]
struct FfiContext {
    waker: *const WakerBase,
}

/// What polling an [`FfiFuture`] gives.
#[repr(C, u8)]
#[allow(dead_code, reason = "made by the libraries")]
pub(super) enum FfiPoll {
    /// It is done.
    Ready(bool),
    /// The bell will ring.
    Pending,
    /// It panicked.
    Panicked,
}

impl FfiFuture {
    /// Polls it; while it is pending, `bell` rings when it should be polled again. It may not be polled once it is done.
    pub(super) fn poll(&mut self, bell: &Arc<Bell>) -> FfiPoll {
        let mut context = FfiContext { waker: Bell::as_waker(bell) };
        // SAFETY: the future is alive until `drop`, and the context holds for the call.
        unsafe { (self.poll)(self.future, &raw mut context) }
    }
}

impl Drop for FfiFuture {
    fn drop(&mut self) {
        // SAFETY: called once, and the future is not touched afterwards.
        unsafe { (self.drop)(self.future) };
    }
}
