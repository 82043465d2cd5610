//! How the thread of an async UDF's instance tells the task that uses it that something has happened.
//!
//! The plugin interface has no such signal for results: its host is meant to ask again and again. But a library frees
//! a call's arguments when the call ends, in whatever way, and the freeing is ours (`row`). So the bell rings when a
//! call has ended; its result is there an instant later, or never will be, if the instance died. The same moments serve to hand over
//! the next row (`feeder`).

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use futures::task::AtomicWaker;

use super::abi::{AsyncEntry, Handle};
use super::feeder::Feeder;

/// The waker that a library's future sees (the layout of `async-ffi` 0.5).
#[repr(C)]
pub(super) struct WakerBase {
    vtable: *const WakerVtable,
}

#[repr(C)]
struct WakerVtable {
    clone: unsafe extern "C" fn(*const WakerBase) -> *const WakerBase,
    wake: unsafe extern "C" fn(*const WakerBase),
    wake_by_ref: unsafe extern "C" fn(*const WakerBase),
    drop: unsafe extern "C" fn(*const WakerBase),
}

/// Shared by one instance, its calls and their wakers.
#[repr(C)]
pub(super) struct Bell {
    /// First, so that a pointer to the bell is a pointer to a waker.
    base: WakerBase,
    task: AtomicWaker,
    /// Whether the task has been told of ended calls since it last listened.
    rung: AtomicBool,
    ended: Mutex<Vec<u32>>,
    feeder: Feeder,
}

// SAFETY: the one pointer is to a static.
unsafe impl Send for Bell {}
// SAFETY: as above; the rest is made for sharing.
unsafe impl Sync for Bell {}

static VTABLE: WakerVtable = WakerVtable { clone, wake, wake_by_ref, drop: drop_waker };

impl Bell {
    /// The bell of an instance.
    pub(super) fn new(instance: Option<(AsyncEntry, Handle)>) -> Arc<Self> {
        Arc::new(Self {
            base: WakerBase { vtable: &raw const VTABLE },
            task: AtomicWaker::new(),
            rung: AtomicBool::new(true),
            ended: Mutex::new(Vec::new()),
            feeder: Feeder::new(instance),
        })
    }

    /// The bell as a library's waker, which it may clone but does not own.
    pub(super) fn as_waker(bell: &Arc<Self>) -> *const WakerBase {
        Arc::as_ptr(bell).cast()
    }

    /// The rows that the instance has not taken.
    pub(super) fn feeder(&self) -> &Feeder {
        &self.feeder
    }

    /// Wakes the task.
    pub(super) fn wake(&self) {
        self.task.wake();
    }

    /// A call has ended. Called on the instance's thread.
    pub(super) fn call_ended(self: &Arc<Self>, slot: u32) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.task.wake();
        }
        self.feeder.let_go(self);
    }

    /// The instance may have room for a row. Called on its thread.
    fn may_have_room(self: &Arc<Self>) {
        if self.feeder.may_have_room(self) {
            self.task.wake();
        }
    }

    /// Moves the calls that have ended since the last time to the end of `slots`.
    pub(super) fn take_ended(&self, slots: &mut Vec<u32>) {
        slots.append(&mut self.ended.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// From now on `waker` is called when there is room for rows.
    pub(super) fn register(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// From now on `waker` is called, once, also when a call ends. Look for ended calls after this, not before.
    pub(super) fn listen(&self, waker: &Waker) {
        self.task.register(waker);
        self.rung.store(false, Ordering::Release);
    }
}

unsafe extern "C" fn clone(waker: *const WakerBase) -> *const WakerBase {
    // SAFETY: every waker is the pointer of an `Arc<Bell>` that lives; the clone owns one count.
    unsafe { Arc::increment_strong_count(waker.cast::<Bell>()) };
    waker
}

unsafe extern "C" fn wake(waker: *const WakerBase) {
    // SAFETY: only a clone is woken by value, and gives its count back.
    let bell = unsafe { Arc::from_raw(waker.cast::<Bell>()) };
    bell.may_have_room();
}

unsafe extern "C" fn wake_by_ref(waker: *const WakerBase) {
    // SAFETY: the waker lives for the call, and its count is not given back.
    let bell = unsafe { ManuallyDrop::new(Arc::from_raw(waker.cast::<Bell>())) };
    bell.may_have_room();
}

unsafe extern "C" fn drop_waker(waker: *const WakerBase) {
    // SAFETY: only a clone is dropped, and gives its count back.
    unsafe { Arc::decrement_strong_count(waker.cast::<Bell>()) };
}
