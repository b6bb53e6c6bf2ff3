//! The hand-over between handles and the driver, in every order in which two or three threads can
//! meet there: whoever goes to sleep is woken. A wake-up that gets lost shows as a deadlock.
//!
//! The machine is a toy of the same shape as the real one; `src/handover.rs` is the real one, on
//! loom's lock.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../src/handover.rs"]
mod handover;

mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use handover::{Call, Desk, Handover, Interest, Machine, Wake};
use loom::future::block_on;
use loom::sync::{Arc, Mutex};
use loom::thread;

/// What a tunnel is to the hand-over.
#[derive(Default)]
struct Toy {
    /// Queued by handles, and taken by the driver.
    queued: u32,
    sent: u32,
    /// Came for slot 0.
    arrived: u32,
    wants_read: bool,
    /// The driver has something new to work with.
    attached: bool,
    closed: bool,
    wakes: Vec<Wake>,
}

impl Toy {
    fn arrive(&mut self) {
        self.arrived += 1;
        if std::mem::take(&mut self.wants_read) {
            self.wakes.push(Wake::One(0, Interest::Read));
        }
    }

    fn close(&mut self) {
        self.closed = true;
        self.wakes.push(Wake::All(0));
        self.wakes.push(Wake::Incoming);
    }
}

impl Machine for Toy {
    fn poll_wake(&mut self) -> Option<Wake> {
        self.wakes.pop()
    }

    fn call(&self) -> Call {
        if self.closed || self.attached {
            Call::Now
        } else if self.queued > 0 {
            Call::IfAsleep
        } else {
            Call::No
        }
    }
}

type Tunnel = Arc<Handover<Toy>>;

fn tunnel() -> Tunnel {
    Arc::new(Handover::new(Toy::default()))
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// One turn of the driver as the real one has it; parks, and wakes what is to be woken.
fn turn<R>(tunnel: &Tunnel, f: impl FnOnce(&mut Desk<Toy>) -> R) -> R {
    let mut wakes = Vec::new();
    let result = tunnel.drive(&mut wakes, f);
    wakes.into_iter().for_each(Waker::wake);
    result
}

/// Reads until `count` pieces have arrived or the tunnel is closed.
fn read(tunnel: &Tunnel, count: u32) -> bool {
    block_on(poll_fn(|cx| {
        tunnel.command(|desk| {
            if desk.arrived >= count {
                return Poll::Ready(true);
            }
            if desk.closed {
                return Poll::Ready(false);
            }
            desk.wants_read = true;
            desk.wait(0, Interest::Read, cx);
            Poll::Pending
        })
    }))
}

#[test]
fn commands_reach_a_driver_that_goes_to_sleep() {
    model(|| {
        let tunnel = tunnel();
        let handles: Vec<_> = (0..2)
            .map(|_| {
                let tunnel = Arc::clone(&tunnel);
                thread::spawn(move || tunnel.command(|desk| desk.queued += 1))
            })
            .collect();
        block_on(poll_fn(|cx| {
            turn(&tunnel, |desk| {
                desk.sent += std::mem::take(&mut desk.queued);
                desk.park_driver(cx, false);
                if desk.sent == 2 {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
        }));
        handles.into_iter().for_each(|h| h.join().unwrap());
    });
}

/// A transport that is full until it says otherwise.
#[derive(Default)]
struct Link {
    writable: bool,
    waiting: Option<Waker>,
}

impl Link {
    fn poll_write(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.writable {
            return Poll::Ready(());
        }
        self.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[test]
fn commands_reach_a_driver_that_waits_for_the_transport() {
    model(|| {
        let tunnel = tunnel();
        let link = Arc::new(Mutex::new(Link::default()));
        let transport = {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                let mut link = link.lock().unwrap();
                link.writable = true;
                let waiting = link.waiting.take();
                drop(link);
                waiting.into_iter().for_each(Waker::wake);
            })
        };
        let handle = {
            let tunnel = Arc::clone(&tunnel);
            thread::spawn(move || tunnel.command(|desk| desk.queued += 1))
        };
        block_on(poll_fn(|cx| {
            let ready = link.lock().unwrap().poll_write(cx).is_ready();
            let sent = turn(&tunnel, |desk| {
                if ready {
                    desk.sent += std::mem::take(&mut desk.queued);
                }
                desk.park_driver(cx, !ready);
                desk.sent
            });
            if sent == 1 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
        handle.join().unwrap();
        transport.join().unwrap();
    });
}

#[test]
fn a_new_connection_reaches_a_driver_whatever_it_waits_for() {
    for awake in [false, true] {
        model(move || {
            let tunnel = tunnel();
            let owner = {
                let tunnel = Arc::clone(&tunnel);
                thread::spawn(move || tunnel.command(|desk| desk.attached = true))
            };
            let handle = {
                let tunnel = Arc::clone(&tunnel);
                thread::spawn(move || tunnel.command(|desk| desk.queued += 1))
            };
            // The old transport never takes anything again; what is queued goes over the new one.
            let mut fresh = false;
            block_on(poll_fn(|cx| {
                turn(&tunnel, |desk| {
                    fresh |= std::mem::take(&mut desk.attached);
                    if fresh {
                        desk.sent += std::mem::take(&mut desk.queued);
                    }
                    desk.park_driver(cx, awake && !fresh);
                    if desk.sent == 1 {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
            }));
            owner.join().unwrap();
            handle.join().unwrap();
        });
    }
}

#[test]
fn a_reader_that_goes_to_sleep_is_woken_by_what_arrives() {
    model(|| {
        let tunnel = tunnel();
        let driver = {
            let tunnel = Arc::clone(&tunnel);
            thread::spawn(move || {
                turn(&tunnel, |desk| desk.arrive());
                turn(&tunnel, |desk| desk.arrive());
            })
        };
        assert!(read(&tunnel, 2));
        driver.join().unwrap();
    });
}

#[test]
fn an_end_reaches_everybody_who_waits() {
    model(|| {
        let tunnel = tunnel();
        let owner = {
            let tunnel = Arc::clone(&tunnel);
            thread::spawn(move || tunnel.command(|desk| desk.close()))
        };
        let reader = {
            let tunnel = Arc::clone(&tunnel);
            thread::spawn(move || assert!(!read(&tunnel, 1)))
        };
        // The driver waits for a transport that never comes back.
        block_on(poll_fn(|cx| {
            turn(&tunnel, |desk| {
                desk.park_driver(cx, true);
                if desk.closed {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
        }));
        owner.join().unwrap();
        reader.join().unwrap();
    });
}

#[test]
fn two_interests_in_one_stream_are_both_woken() {
    model(|| {
        let tunnel = tunnel();
        let driver = {
            let tunnel = Arc::clone(&tunnel);
            thread::spawn(move || turn(&tunnel, |desk| desk.close()))
        };
        let reset = {
            let tunnel = Arc::clone(&tunnel);
            thread::spawn(move || {
                block_on(poll_fn(|cx| {
                    tunnel.look(|desk| {
                        if desk.closed {
                            return Poll::Ready(());
                        }
                        desk.wait(0, Interest::Reset, cx);
                        Poll::Pending
                    })
                }));
            })
        };
        assert!(!read(&tunnel, 1));
        reset.join().unwrap();
        driver.join().unwrap();
    });
}

#[test]
fn the_owner_that_waits_hears_of_every_change() {
    model(|| {
        let tunnel = tunnel();
        let driver = {
            let tunnel = Arc::clone(&tunnel);
            thread::spawn(move || {
                for _ in 0..2 {
                    turn(&tunnel, |desk| {
                        desk.arrived += 1;
                        desk.wakes.push(Wake::Incoming);
                    });
                }
            })
        };
        block_on(poll_fn(|cx| {
            tunnel.look(|desk| {
                if desk.arrived == 2 {
                    return Poll::Ready(());
                }
                desk.wait_incoming(cx);
                Poll::Pending
            })
        }));
        driver.join().unwrap();
    });
}

struct Sleeper;

impl std::task::Wake for Sleeper {
    fn wake(self: std::sync::Arc<Self>) {}
}

#[test]
fn nobody_who_has_let_go_of_a_stream_is_kept_or_left_behind() {
    model(|| {
        let tunnel = tunnel();
        let sleeper = std::sync::Arc::new(Sleeper);
        let driver = {
            let tunnel = Arc::clone(&tunnel);
            thread::spawn(move || {
                turn(&tunnel, |desk| desk.arrive());
                turn(&tunnel, |desk| desk.wakes.push(Wake::All(0)));
            })
        };
        let waker = Waker::from(std::sync::Arc::clone(&sleeper));
        tunnel.command(|desk| {
            desk.wants_read = true;
            desk.wait(0, Interest::Read, &Context::from_waker(&waker));
        });
        drop(waker);
        tunnel.command(|desk| desk.forget(0));
        driver.join().unwrap();
        assert_eq!(std::sync::Arc::strong_count(&sleeper), 1);
    });
}
