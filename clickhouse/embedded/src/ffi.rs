//! The C interface of `libchdb`, and, but for the way in which the process ends, the only `unsafe` of this crate.
//!
//! What is built on it must not know a pointer: it sees [`Api`], [`Connection`], [`QueryResult`] and [`InsertStream`].
//! The declarations follow `chdb.h` of version 26.7.3. A connection runs one statement at a time; the `&mut self`
//! of its methods says so.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::{self, NonNull};

use libloading::Library;

use crate::exit;

/// What a statement does, as the engine's own parser sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryClass {
    /// Leaves no trace: SELECT, SHOW, DESCRIBE, EXPLAIN, EXISTS, CHECK.
    ReadOnly,
    /// Changes data or definitions.
    Mutating,
    /// SET, USE, SYSTEM, KILL, BACKUP and the like.
    Control,
    /// Does not parse.
    Unknown,
}

/// What the engine counted for one statement.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) elapsed_seconds: f64,
    pub(crate) result_rows: u64,
    pub(crate) result_bytes: u64,
    pub(crate) read_rows: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_rows: u64,
    pub(crate) written_bytes: u64,
}

/// A named query parameter and its value, as text.
pub(crate) type Param = (String, String);

#[repr(C)]
struct Analysis {
    struct_size: u32,
    statement_count: u32,
    flags: u32,
    query_class: u32,
}

type Handle = *mut c_void;

macro_rules! api {
    ($($name:ident: $signature:ty;)*) => {
        /// The engine's functions. Loaded once and never unloaded: its threads outlive every connection.
        pub(crate) struct Api { $($name: $signature,)* }

        impl Api {
            /// Loads the library and tells it to leave the process's signal handlers alone.
            ///
            /// # Errors
            /// What the loader said, or which function is missing.
            pub(crate) fn load(path: &Path) -> Result<Self, String> {
                // SAFETY: libchdb's initialisers only set up its own statics; no other code of this process depends on them.
                let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
                $(
                    // SAFETY: the signature is the one that chdb.h of this version declares for this symbol.
                    let $name = *unsafe { library.get::<$signature>(concat!("chdb_", stringify!($name))) }
                        .map_err(|error| error.to_string())?;
                )*
                std::mem::forget(library);
                exit::leave_without_destructors();
                let api = Self { $($name),* };
                // SAFETY: takes a flag, touches only the library's own state, and must come before the first connection.
                unsafe { (api.set_signal_handlers_enabled)(0) };
                Ok(api)
            }
        }
    };
}

api! {
    set_signal_handlers_enabled: unsafe extern "C" fn(c_int);
    connect: unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut Handle;
    close_conn: unsafe extern "C" fn(*mut Handle);
    query_with_params_n: unsafe extern "C" fn(
        Handle, *const u8, usize, *const u8, usize,
        *const *const u8, *const usize, *const *const u8, *const usize, usize,
    ) -> Handle;
    destroy_query_result: unsafe extern "C" fn(Handle);
    stream_insert_with_params_n: unsafe extern "C" fn(
        Handle, *const u8, usize, *const u8, usize,
        *const *const u8, *const usize, *const *const u8, *const usize, usize,
    ) -> Handle;
    stream_append: unsafe extern "C" fn(Handle, *const c_void, usize) -> c_int;
    stream_done: unsafe extern "C" fn(Handle) -> Handle;
    stream_insert_error: unsafe extern "C" fn(Handle) -> *const c_char;
    destroy_insert_stream: unsafe extern "C" fn(Handle);
    classify_query_n: unsafe extern "C" fn(Handle, *const u8, usize, *const u8, usize, *mut Analysis) -> c_int;
    result_buffer: unsafe extern "C" fn(Handle) -> *const u8;
    result_length: unsafe extern "C" fn(Handle) -> usize;
    result_elapsed: unsafe extern "C" fn(Handle) -> f64;
    result_rows_read: unsafe extern "C" fn(Handle) -> u64;
    result_bytes_read: unsafe extern "C" fn(Handle) -> u64;
    result_storage_rows_read: unsafe extern "C" fn(Handle) -> u64;
    result_storage_bytes_read: unsafe extern "C" fn(Handle) -> u64;
    result_rows_written: unsafe extern "C" fn(Handle) -> u64;
    result_bytes_written: unsafe extern "C" fn(Handle) -> u64;
    result_error: unsafe extern "C" fn(Handle) -> *const c_char;
}

/// The arrays of names and values that the `*_with_params_n` functions take; borrows the parameters.
struct ParamArrays<'a> {
    names: Vec<*const u8>,
    name_lengths: Vec<usize>,
    values: Vec<*const u8>,
    value_lengths: Vec<usize>,
    _params: PhantomData<&'a [Param]>,
}

impl<'a> ParamArrays<'a> {
    fn new(params: &'a [Param]) -> Self {
        Self {
            names: params.iter().map(|(name, _)| name.as_ptr()).collect(),
            name_lengths: params.iter().map(|(name, _)| name.len()).collect(),
            values: params.iter().map(|(_, value)| value.as_ptr()).collect(),
            value_lengths: params.iter().map(|(_, value)| value.len()).collect(),
            _params: PhantomData,
        }
    }
}

/// One connection to the engine: a session of its own, with its own settings, database and temporary tables.
pub(crate) struct Connection {
    api: &'static Api,
    owner: NonNull<Handle>,
}

// SAFETY: the engine guards a connection by a mutex and ties it to no thread; it is only reached through `&mut`.
unsafe impl Send for Connection {}

impl Connection {
    /// Opens a connection with `--name=value` arguments; the first of a process boots the engine on `--path`.
    ///
    /// Returns `None` if the engine refuses (it logs why, and does not say).
    pub(crate) fn open(api: &'static Api, arguments: &[CString]) -> Option<Self> {
        let mut argv: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
        let argc = c_int::try_from(argv.len()).ok()?;
        // SAFETY: argv holds argc NUL-terminated strings that outlive the call; the engine copies and does not write them.
        let owner = unsafe { (api.connect)(argc, argv.as_mut_ptr()) };
        NonNull::new(owner).map(|owner| Self { api, owner })
    }

    fn handle(&self) -> Handle {
        // SAFETY: `owner` came from chdb_connect and stays valid until chdb_close_conn, which only drop calls.
        unsafe { *self.owner.as_ptr() }
    }

    /// Runs one statement to its end.
    ///
    /// # Errors
    /// The engine's message, `Code: N. DB::Exception: ...`.
    pub(crate) fn query(&mut self, sql: &str, format: &str, params: &[Param]) -> Result<QueryResult<'_>, String> {
        let arrays = ParamArrays::new(params);
        // SAFETY: the handle is live and used by this thread alone (`&mut self`); all pointers are valid for their
        // lengths during the call, and the engine copies what it keeps.
        let raw = unsafe {
            (self.api.query_with_params_n)(
                self.handle(),
                sql.as_ptr(),
                sql.len(),
                format.as_ptr(),
                format.len(),
                arrays.names.as_ptr(),
                arrays.name_lengths.as_ptr(),
                arrays.values.as_ptr(),
                arrays.value_lengths.as_ptr(),
                params.len(),
            )
        };
        QueryResult::take(self.api, raw)
    }

    /// Says what a statement would do, without running it.
    pub(crate) fn classify(&mut self, sql: &str) -> QueryClass {
        let size = u32::try_from(size_of::<Analysis>()).unwrap_or_default();
        let mut analysis = Analysis { struct_size: size, statement_count: 0, flags: 0, query_class: 4 };
        // SAFETY: as in `query`; `analysis` has the size it states, and no target database is given.
        let state = unsafe {
            (self.api.classify_query_n)(self.handle(), sql.as_ptr(), sql.len(), ptr::null(), 0, &raw mut analysis)
        };
        match (state, analysis.query_class) {
            (0, 0) => QueryClass::ReadOnly,
            (0, 1 | 2) => QueryClass::Mutating,
            (0, 3) => QueryClass::Control,
            _ => QueryClass::Unknown,
        }
    }

    /// Begins an INSERT whose rows follow, encoded in `format`. `sql` ends before FORMAT.
    ///
    /// # Errors
    /// The engine's message if the statement is refused.
    pub(crate) fn insert(&mut self, sql: &str, format: &str, params: &[Param]) -> Result<InsertStream<'_>, String> {
        let arrays = ParamArrays::new(params);
        // SAFETY: as in `query`.
        let raw = unsafe {
            (self.api.stream_insert_with_params_n)(
                self.handle(),
                sql.as_ptr(),
                sql.len(),
                format.as_ptr(),
                format.len(),
                arrays.names.as_ptr(),
                arrays.name_lengths.as_ptr(),
                arrays.values.as_ptr(),
                arrays.value_lengths.as_ptr(),
                params.len(),
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| "the engine gave no insert stream".to_owned())?;
        let stream = InsertStream { api: self.api, raw, _connection: PhantomData };
        match stream.error() {
            Some(message) => Err(message),
            None => Ok(stream),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: `owner` is live, and no result or stream that borrows the connection can outlive it.
        unsafe { (self.api.close_conn)(self.owner.as_ptr()) };
    }
}

/// The result of a statement that succeeded.
pub(crate) struct QueryResult<'a> {
    api: &'static Api,
    raw: NonNull<c_void>,
    _connection: PhantomData<&'a mut Connection>,
}

impl QueryResult<'_> {
    fn take(api: &'static Api, raw: Handle) -> Result<Self, String> {
        let raw = NonNull::new(raw).ok_or_else(|| "the engine gave no result".to_owned())?;
        let result = Self { api, raw, _connection: PhantomData };
        // SAFETY: `raw` is a live result; the text is NUL-terminated and lives as long as it.
        match unsafe { text((api.result_error)(raw.as_ptr())) } {
            Some(message) => Err(message),
            None => Ok(result),
        }
    }

    /// The formatted result.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `raw` is a live result; the buffer holds `length` bytes and lives as long as it.
        unsafe {
            let length = (self.api.result_length)(self.raw.as_ptr());
            let buffer = (self.api.result_buffer)(self.raw.as_ptr());
            if buffer.is_null() || length == 0 { &[] } else { std::slice::from_raw_parts(buffer, length) }
        }
    }

    /// What the engine counted.
    pub(crate) fn counts(&self) -> Counts {
        let raw = self.raw.as_ptr();
        // SAFETY: `raw` is a live result, and these only read numbers from it.
        unsafe {
            Counts {
                elapsed_seconds: (self.api.result_elapsed)(raw),
                result_rows: (self.api.result_rows_read)(raw),
                result_bytes: (self.api.result_bytes_read)(raw),
                read_rows: (self.api.result_storage_rows_read)(raw),
                read_bytes: (self.api.result_storage_bytes_read)(raw),
                written_rows: (self.api.result_rows_written)(raw),
                written_bytes: (self.api.result_bytes_written)(raw),
            }
        }
    }
}

impl Drop for QueryResult<'_> {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live result that nothing else frees.
        unsafe { (self.api.destroy_query_result)(self.raw.as_ptr()) };
    }
}

/// An INSERT whose rows are being sent. Dropped before [`InsertStream::finish`], it inserts nothing more.
pub(crate) struct InsertStream<'a> {
    api: &'static Api,
    raw: NonNull<c_void>,
    _connection: PhantomData<&'a mut Connection>,
}

impl InsertStream<'_> {
    fn error(&self) -> Option<String> {
        // SAFETY: `raw` is a live stream; the text is NUL-terminated and lives as long as it.
        unsafe { text((self.api.stream_insert_error)(self.raw.as_ptr())) }
    }

    /// Sends a chunk, cut anywhere; blocks while the engine is behind. False when the engine takes no more: its
    /// reason comes from [`InsertStream::finish`].
    pub(crate) fn append(&mut self, chunk: &[u8]) -> bool {
        // SAFETY: the stream is live and used by this thread alone; the chunk is valid during the call, and copied.
        unsafe { (self.api.stream_append)(self.raw.as_ptr(), chunk.as_ptr().cast(), chunk.len()) == 0 }
    }

    /// Says that all rows were sent, and waits until they are stored.
    ///
    /// # Errors
    /// The engine's message.
    pub(crate) fn finish(self) -> Result<Counts, String> {
        // SAFETY: the stream is live; the result it gives is ours to free.
        let raw = unsafe { (self.api.stream_done)(self.raw.as_ptr()) };
        QueryResult::take(self.api, raw).map(|result| result.counts())
    }
}

impl Drop for InsertStream<'_> {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live stream that nothing else frees; an unfinished one is cancelled by this.
        unsafe { (self.api.destroy_insert_stream)(self.raw.as_ptr()) };
    }
}

/// Copies a C string that may be null.
///
/// # Safety
/// `pointer` is null or points to a NUL-terminated string that is valid during the call.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}
