//! How a process ends that has the engine open.
//!
//! The engine's threads run to the end of the process, and its static destructors, which run before that, destroy what
//! they use. A program that fails with the engine open must end with its own exit code and not in a crash, so that it
//! leaves before the first of these destructors. What was acknowledged is kept, as it is when the process is killed.
//! (Rust has flushed its standard output by then.)

/// Makes the process leave without running the static destructors of what is loaded so far.
#[cfg(not(target_os = "linux"))]
pub(crate) fn leave_without_destructors() {}

#[cfg(target_os = "linux")]
pub(crate) use linux::leave_without_destructors;

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{c_int, c_void};
    use std::ptr;
    use std::sync::atomic::{AtomicBool, Ordering};

    unsafe extern "C" {
        fn on_exit(at_exit: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
        fn _exit(status: c_int) -> !;
    }

    static LOADED: AtomicBool = AtomicBool::new(false);

    extern "C" fn leave(status: c_int, _: *mut c_void) {
        // SAFETY: ends the process; touches nothing of it.
        unsafe { _exit(status) }
    }

    /// Whether it could.
    fn register() -> bool {
        // SAFETY: `leave` lives as long as the process.
        unsafe { on_exit(leave, ptr::null_mut()) == 0 }
    }

    /// Makes the process leave without running the engine's static destructors.
    ///
    /// What is registered for the exit runs in reverse order, and the engine registers destructors whenever it first uses
    /// a static: registered here alone, one comes after those. See [`Last`].
    pub(crate) fn leave_without_destructors() {
        LOADED.store(true, Ordering::Release);
        if !register() {
            tracing::warn!("cannot register for the process's exit; it may crash there with the engine open");
        }
    }

    /// Registers once more when the main thread ends: destructors of the thread that calls `exit` run before all that was
    /// registered for it (glibc's `__run_exit_handlers`).
    struct Last;

    impl Drop for Last {
        fn drop(&mut self) {
            if LOADED.load(Ordering::Acquire) {
                register();
            }
        }
    }

    thread_local! {
        static LAST: Last = const { Last };
    }

    extern "C" fn with_main_thread() {
        LAST.with(|_| ());
    }

    // SAFETY: the section holds functions that the main thread calls before `main`; this one only notes a destructor.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static WITH_MAIN_THREAD: extern "C" fn() = with_main_thread;
}
