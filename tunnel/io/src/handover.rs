//! Where threads meet: one lock around a machine, and the wakers of those who sleep beside it.
//!
//! Handles run commands under the lock, the driver takes what they queued, and each leaves a waker
//! when it goes to sleep. No wake-up may get lost between a look and going to sleep, so both happen
//! under the same lock; wakers are called after it is released. `tests/loom.rs` tries all orders.
//!
//! What the machine is, and what its events mean, is not known here: see `state`.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::task::{Context, Waker};

use crate::sync::{Mutex, MutexGuard};

/// Waker slots that an idle tunnel may keep.
const KEEP_SLOTS: usize = 64;

/// What stands behind the lock.
pub(crate) trait Machine {
    /// The next one who can go on.
    fn poll_wake(&mut self) -> Option<Wake>;

    /// Whether the driver has to look.
    fn call(&self) -> Call;
}

/// Who can go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wake {
    /// Whoever waits for this on the slot.
    One(usize, Interest),
    /// Whoever waits for anything on the slot.
    All(usize),
    /// Whoever waits for what the peer asks for.
    Incoming,
}

/// What a task waits for on a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interest {
    /// Also the answer to an open.
    Read,
    Write,
    Reset,
}

/// Whether the driver has to look at the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    No,
    /// There is something to send: no use while the driver waits for the transport anyway.
    IfAsleep,
    /// Whatever it waits for.
    Now,
}

pub(crate) struct Handover<M> {
    desk: Mutex<Desk<M>>,
}

/// The machine and who waits for what; what commands work on.
pub(crate) struct Desk<M> {
    machine: M,
    slots: Vec<Slot>,
    incoming: Option<Waker>,
    driver: Option<Waker>,
    /// The driver will look at the machine again without being woken.
    driver_awake: bool,
}

#[derive(Default)]
struct Slot {
    read: Option<Waker>,
    write: Option<Waker>,
    reset: Option<Waker>,
}

impl<M: Machine> Handover<M> {
    pub(crate) fn new(machine: M) -> Self {
        Self {
            desk: Mutex::new(Desk {
                machine,
                slots: Vec::new(),
                incoming: None,
                driver: None,
                // It has to be polled once anyway.
                driver_awake: true,
            }),
        }
    }

    /// Runs a command of a handle; wakes whom it concerns after the lock is released.
    pub(crate) fn command<R>(&self, f: impl FnOnce(&mut Desk<M>) -> R) -> R {
        let mut wakes = Vec::new();
        let mut desk = self.lock();
        let result = f(&mut desk);
        desk.collect(&mut wakes);
        let driver = desk.driver_to_wake();
        drop(desk);
        if let Some(driver) = driver {
            driver.wake();
        }
        for waker in wakes {
            waker.wake();
        }
        result
    }

    /// Looks without changing anything that somebody could wait for.
    pub(crate) fn look<R>(&self, f: impl FnOnce(&mut Desk<M>) -> R) -> R {
        f(&mut self.lock())
    }

    /// The driver's turn: like [`Self::command`], but leaves the wakers to be called by the driver.
    pub(crate) fn drive<R>(&self, wakes: &mut Vec<Waker>, f: impl FnOnce(&mut Desk<M>) -> R) -> R {
        let mut desk = self.lock();
        let result = f(&mut desk);
        desk.collect(wakes);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Desk<M>> {
        // A panic under the lock is a bug of ours; the others may at least find the tunnel closed.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Machine> Desk<M> {
    /// The driver goes to sleep until it is called, or (`awake`) comes back by itself as soon as the
    /// transport takes more.
    pub(crate) fn park_driver(&mut self, cx: &Context<'_>, awake: bool) {
        self.driver_awake = awake;
        register(&mut self.driver, cx);
    }

    pub(crate) fn wait_incoming(&mut self, cx: &Context<'_>) {
        register(&mut self.incoming, cx);
    }

    pub(crate) fn wait(&mut self, index: usize, interest: Interest, cx: &Context<'_>) {
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        register(self.slots[index].of(interest), cx);
    }

    /// Nobody waits on the slot any more.
    pub(crate) fn forget(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Slot::default();
        }
    }

    /// Nobody waits on any slot: gives back their memory.
    pub(crate) fn forget_all(&mut self) {
        if self.slots.len() > KEEP_SLOTS {
            self.slots = Vec::new();
        }
    }

    fn collect(&mut self, wakes: &mut Vec<Waker>) {
        while let Some(wake) = self.machine.poll_wake() {
            match wake {
                Wake::One(index, interest) => {
                    let slot = self.slots.get_mut(index);
                    wakes.extend(slot.and_then(|slot| slot.of(interest).take()));
                }
                Wake::All(index) => {
                    if let Some(slot) = self.slots.get_mut(index) {
                        let Slot { read, write, reset } = std::mem::take(slot);
                        wakes.extend([read, write, reset].into_iter().flatten());
                    }
                }
                Wake::Incoming => wakes.extend(self.incoming.take()),
            }
        }
    }

    fn driver_to_wake(&mut self) -> Option<Waker> {
        match self.machine.call() {
            Call::No => return None,
            Call::IfAsleep if self.driver_awake => return None,
            Call::IfAsleep | Call::Now => {}
        }
        self.driver_awake = true;
        self.driver.take()
    }
}

impl<M> Deref for Desk<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.machine
    }
}

impl<M> DerefMut for Desk<M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.machine
    }
}

impl Slot {
    fn of(&mut self, interest: Interest) -> &mut Option<Waker> {
        match interest {
            Interest::Read => &mut self.read,
            Interest::Write => &mut self.write,
            Interest::Reset => &mut self.reset,
        }
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
