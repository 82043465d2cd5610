//! Hands rows to an instance of an async UDF, on whichever thread notices that there is room.
//!
//! An instance takes one row at a time: its channel holds one, and the next is due when its thread has taken that. A task that
//! waited for each of them would be woken, and put to sleep, for every call, which costs more than most calls do (a third of the
//! CPU of the pipeline, when this was written). So rows wait in a queue, and the instance's own thread moves the next one
//! along when it calls the pipeline anyway: to say that there is room, or that a call has ended (`bell`).

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::abi::{AsyncEntry, FfiArrays, FfiFuture, FfiPoll, Handle};
use super::bell::Bell;

/// So many rows wait at most.
const MOST: usize = 256;

/// When no more than so many wait, the task is told that there is room.
const FEW: usize = MOST / 2;

thread_local! {
    /// Whether this thread is in [`Feeder::feed`].
    static FEEDS: Cell<bool> = const { Cell::new(false) };
}

/// The rows of one instance that it has not taken.
pub(super) struct Feeder {
    rows: Mutex<Rows>,
    /// Whether to look again for what can be handed over: set by those who found `rows` taken.
    again: AtomicBool,
    /// The instance has room, and nobody has looked.
    has_room: AtomicBool,
    /// The task waits until there are fewer rows.
    is_awaited: AtomicBool,
    /// Rows that the instance has and has not let go of; for a moment less than that.
    taken: AtomicI64,
}

struct Rows {
    /// None once it is to end.
    instance: Option<(AsyncEntry, Handle)>,
    queue: VecDeque<(u32, FfiArrays)>,
    /// A row that the instance has been asked to take.
    asked: Option<FfiFuture>,
    /// The instance takes no more.
    is_dead: bool,
}

impl Feeder {
    pub(super) fn new(instance: Option<(AsyncEntry, Handle)>) -> Self {
        let rows = Rows { instance, queue: VecDeque::new(), asked: None, is_dead: false };
        Self {
            rows: Mutex::new(rows),
            again: AtomicBool::new(false),
            has_room: AtomicBool::new(false),
            is_awaited: AtomicBool::new(false),
            taken: AtomicI64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the rows, and then what others found no time for meanwhile.
    fn with<R>(&self, bell: &Arc<Bell>, act: impl FnOnce(&mut Rows) -> R) -> R {
        let mut rows = self.lock();
        let done = act(&mut rows);
        drop(rows);
        if self.again.load(Ordering::Acquire) {
            self.feed(bell);
        }
        done
    }

    /// Puts a row behind the others.
    pub(super) fn push(&self, bell: &Arc<Bell>, slot: u32, row: FfiArrays) {
        self.with(bell, |rows| {
            rows.queue.push_back((slot, row));
            if rows.asked.is_none() {
                self.again.store(true, Ordering::Release);
            }
        });
    }

    /// Whether another row may be put behind the others. If not, the task is woken when it may.
    ///
    /// # Errors
    /// The instance takes no more.
    pub(super) fn has_place(&self, bell: &Arc<Bell>) -> Result<bool, Dead> {
        if self.has_room.swap(false, Ordering::AcqRel) {
            self.feed(bell);
        }
        self.with(bell, |rows| {
            if rows.is_dead {
                return Err(Dead);
            }
            let has_place = rows.queue.len() < MOST;
            if !has_place {
                // While the rows are locked: who takes some away looks for it afterwards.
                self.is_awaited.store(true, Ordering::Release);
            }
            Ok(has_place)
        })
    }

    /// The instance has let go of a row. Called on its thread.
    pub(super) fn let_go(&self, bell: &Arc<Bell>) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
        self.feed(bell);
    }

    /// The instance has room, or has died. Called on its thread, within its channel. Whether the task is to look after it.
    ///
    /// An instance that dies says so within a lock of its channel, which handing over a row would take again. By then it has let
    /// go of all rows, but for one that was never taken out of the channel: a live one has at least the row that made room. So
    /// with two it lives.
    pub(super) fn may_have_room(&self, bell: &Arc<Bell>) -> bool {
        if FEEDS.get() || self.taken.load(Ordering::Acquire) < 2 {
            self.has_room.store(true, Ordering::Release);
            return true;
        }
        self.feed(bell);
        false
    }

    /// Hands over what the instance takes.
    fn feed(&self, bell: &Arc<Bell>) {
        self.again.store(true, Ordering::Release);
        if FEEDS.replace(true) {
            // Within a call of the library that was made below.
            return;
        }
        while self.again.load(Ordering::Acquire) {
            let mut rows = match self.rows.try_lock() {
                Ok(rows) => rows,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // Whoever has it looks again.
                Err(TryLockError::WouldBlock) => break,
            };
            while self.again.swap(false, Ordering::AcqRel) {
                self.taken.fetch_add(rows.hand_over(bell), Ordering::AcqRel);
            }
            let (is_dead, are_few) = (rows.is_dead, rows.queue.len() <= FEW);
            drop(rows);
            if is_dead || (are_few && self.is_awaited.swap(false, Ordering::AcqRel)) {
                bell.wake();
            }
        }
        FEEDS.set(false);
    }

    /// Gives the rows up that were not taken, and the handle, which nothing here uses any more.
    pub(super) fn close(&self) -> Option<Handle> {
        let mut rows = self.lock();
        rows.asked = None;
        rows.give_up();
        rows.instance.take().map(|(_, handle)| handle)
    }
}

/// An instance takes no more rows.
pub(super) struct Dead;

impl Rows {
    /// Hands over rows while they are taken; how many were.
    fn hand_over(&mut self, bell: &Arc<Bell>) -> i64 {
        let mut taken = 0;
        let Some((entry, handle)) = self.instance.filter(|_| !self.is_dead) else { return taken };
        loop {
            let asked = match &mut self.asked {
                Some(asked) => asked,
                None => {
                    let Some((slot, row)) = self.queue.pop_front() else { return taken };
                    // SAFETY: the handle is the instance's until it is taken out of here; the row becomes the library's.
                    self.asked.insert(unsafe { (entry.send)(handle, u64::from(slot), row) })
                }
            };
            match asked.poll(bell) {
                FfiPoll::Ready(true) => taken += 1,
                FfiPoll::Pending => return taken,
                FfiPoll::Ready(false) | FfiPoll::Panicked => {
                    self.is_dead = true;
                    self.give_up();
                }
            }
            self.asked = None;
            if self.is_dead {
                return taken;
            }
        }
    }

    fn give_up(&mut self) {
        for (_, row) in self.queue.drain(..) {
            row.free();
        }
    }
}
