//! Credit that this side grants: how large a stream's window is, and who pays for it.
//!
//! Every stream is sure of the base window. What a stream holds above it is charged to one pool per
//! tunnel and to the budget of the process, so the memory that a peer can make us hold is bounded by
//! `streams * base_window + growth_budget`, and that of all peers likewise.
//!
//! Promised credit cannot be taken back, so a stream that falls idle keeps what it has grown to. That is
//! why the last part of the pool is for windows of a modest size: a few large idle ones must not leave
//! the streams that come later with the base window; and why large windows that are still used get
//! smaller when the pool is nearly used up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::budget::{Budget, Share};
use crate::config::Config;

/// Round-trip times below this are taken as this: on fast links the scheduling of tasks, not the
/// link, decides how fast credit comes back.
const RTT_FLOOR: Duration = Duration::from_millis(2);
/// From this size on a stream has of [`RTT_FLOOR`] the share that it has of the tunnel's bytes: while one
/// stream waits for its credit to come back, others send. Larger windows would only let more bytes wait here,
/// until they have left the processor's cache.
const SHARED: u32 = 128 * 1024;
/// A window may grow so far while the pool lasts, and farther only while a quarter of the pool is free.
const MODEST: u32 = 256 * 1024;
/// A window of which half lasts longer than this is halved: less than a quarter of it was used in 10 s.
const SLOW: Duration = Duration::from_secs(20);
/// While less than one of so many parts of the pool is left, windows that are not modest are halved.
const PRESSURE: u64 = 5;

/// Credit above the base windows.
#[derive(Debug)]
pub(crate) struct Pool {
    /// What it has taken from the budget of the process.
    share: Share,
    /// Bytes that the applications of all streams of the tunnel took.
    consumed: u64,
    budget: u64,
    /// Windows that could not grow for want of the tunnel's room, and of the process's.
    refused: [u64; 2],
}

impl Pool {
    pub(crate) fn new(budget: u64, process: Arc<Budget>) -> Self {
        Self {
            share: Share::growth(process),
            consumed: 0,
            budget,
            refused: [0; 2],
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.share.used()
    }

    /// How often a window could not grow for want of the tunnel's room, and of the process's.
    pub(crate) fn refused(&self) -> [u64; 2] {
        self.refused
    }

    /// Whether less than one of `parts` of the tunnel's or of the process's room is left.
    fn is_scarcer_than(&self, parts: u64) -> bool {
        self.budget - self.used() <= self.budget / parts || self.share.is_scarcer_than(parts)
    }

    fn take(&mut self, bytes: u64) -> bool {
        if self.budget - self.used() < bytes {
            self.refused[0] += 1;
            return false;
        }
        let fits = self.share.take(bytes);
        self.refused[1] += u64::from(!fits);
        fits
    }

    fn give_back(&mut self, bytes: u64) {
        self.share.give_back(bytes);
    }
}

/// The receiving half of one stream's flow control. All offsets count from the stream's first byte.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Bytes that came in, delivered or dropped.
    received: u64,
    /// Bytes that the application took.
    consumed: u64,
    /// Highest limit that the peer was told.
    limit: u64,
    /// Present size.
    size: u32,
    /// Part of `size` that the pool pays for.
    charged: u32,
    granted_at: Option<Instant>,
    /// What applications had taken of this stream at that time, and of all.
    own_before: u64,
    all_before: u64,
}

impl Window {
    /// Chooses the first credit of a stream and promises it.
    pub(crate) fn start(&mut self, config: &Config, pool: &mut Pool, now: Instant) -> u32 {
        self.size = config.base_window;
        let extra = config.initial_window.saturating_sub(config.base_window);
        if !pool.is_scarcer_than(2) && pool.take(extra.into()) {
            self.charged = extra;
            self.size += extra;
        }
        self.limit = self.size.into();
        self.granted_at = Some(now);
        (self.own_before, self.all_before) = (0, pool.consumed);
        self.size
    }

    /// Bytes that came in.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that the peer may still send.
    pub(crate) fn granted(&self) -> u64 {
        self.limit.saturating_sub(self.received)
    }

    /// Present size.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Counts bytes that came in; false when they exceed the promise.
    #[must_use]
    pub(crate) fn receive(&mut self, bytes: u64) -> bool {
        self.received += bytes;
        self.received <= self.limit
    }

    /// Counts bytes that the application took; true when a new grant is due.
    #[must_use]
    pub(crate) fn consume(&mut self, pool: &mut Pool, bytes: usize) -> bool {
        self.consumed += bytes as u64;
        pool.consumed += bytes as u64;
        self.grant_is_due()
    }

    /// The next limit to announce, after adapting the size to how fast the last one was used.
    pub(crate) fn grant(
        &mut self,
        config: &Config,
        pool: &mut Pool,
        min_rtt: Option<Duration>,
        now: Instant,
    ) -> Option<u64> {
        if !self.grant_is_due() {
            return None;
        }
        if let Some(since) = self.granted_at {
            let taken = now.saturating_duration_since(since);
            let fast = min_rtt.unwrap_or_default().max(self.rtt_floor(pool)) * 2;
            let pressed = self.size > MODEST && pool.is_scarcer_than(PRESSURE);
            if taken < fast && !pressed {
                self.grow(config, pool);
            } else if taken > SLOW || pressed {
                self.shrink(config, pool);
            }
        }
        self.granted_at = Some(now);
        (self.own_before, self.all_before) = (self.consumed, pool.consumed);
        let limit = self.consumed + u64::from(self.size);
        (limit > self.limit).then(|| {
            self.limit = limit;
            limit
        })
    }

    /// How long credit may take to come back for reasons that are not the link's.
    fn rtt_floor(&self, pool: &Pool) -> Duration {
        if self.size < SHARED {
            return RTT_FLOOR;
        }
        let own = self.consumed - self.own_before;
        let all = (pool.consumed - self.all_before).max(1);
        // In tenths of a per cent, which is fine enough, so that a stream of many counts as one of a thousand.
        let share = u32::try_from((own * 1000 / all).clamp(1, 1000)).unwrap_or(1000);
        RTT_FLOOR * share / 1000
    }

    /// Gives everything back to the pool; the promise ends with the stream.
    pub(crate) fn close(&mut self, pool: &mut Pool) {
        pool.give_back(self.charged.into());
        self.size -= self.charged;
        self.charged = 0;
    }

    fn grant_is_due(&self) -> bool {
        let next = self.consumed + u64::from(self.size);
        next.saturating_sub(self.limit) >= u64::from(self.size / 2)
    }

    fn grow(&mut self, config: &Config, pool: &mut Pool) {
        let target = self.size.saturating_mul(2).min(config.max_window);
        let extra = target.saturating_sub(self.size);
        let fair = target <= MODEST || !pool.is_scarcer_than(4);
        if extra > 0 && fair && pool.take(extra.into()) {
            self.size = target;
            self.charged += extra;
        }
    }

    fn shrink(&mut self, config: &Config, pool: &mut Pool) {
        let target = (self.size / 2).max(config.initial_window);
        let less = self.size.saturating_sub(target).min(self.charged);
        pool.give_back(less.into());
        self.size -= less;
        self.charged -= less;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    fn config() -> Config {
        Config {
            growth_budget: 1024 * 1024,
            ..Config::default()
        }
    }

    #[test]
    fn a_window_that_is_used_up_fast_doubles_until_the_pool_is_empty() {
        let config = config();
        let mut pool = Pool::new(config.growth_budget, Arc::clone(&config.budget));
        let now = Instant::now();
        let mut window = Window::default();
        assert_eq!(window.start(&config, &mut pool, now), 64 * 1024);
        use_fast(&mut window, &config, &mut pool, now);
        assert_eq!(window.size, 1024 * 1024);
        assert!(!window.receive(u64::from(window.size) + 1));
        window.close(&mut pool);
        assert_eq!(pool.used(), 0);
    }

    /// Takes everything at once, again and again.
    fn use_fast(window: &mut Window, config: &Config, pool: &mut Pool, now: Instant) {
        for _ in 0..20 {
            let rest = window.limit - window.received;
            assert!(window.receive(rest));
            assert!(window.consume(pool, rest as usize));
            assert!(window.grant(config, pool, None, now).is_some());
        }
    }

    /// Windows of one tunnel that are used by turns, half a window in a millisecond each.
    struct Together {
        config: Config,
        pool: Pool,
        now: Instant,
        min_rtt: Option<Duration>,
        windows: Vec<Window>,
    }

    impl Together {
        fn new(min_rtt: Duration) -> Self {
            let config = Config::default();
            Self {
                pool: Pool::new(config.growth_budget, Arc::clone(&config.budget)),
                config,
                now: Instant::now(),
                min_rtt: Some(min_rtt),
                windows: Vec::new(),
            }
        }

        fn open(&mut self, count: usize) {
            for _ in 0..count {
                let mut window = Window::default();
                window.start(&self.config, &mut self.pool, self.now);
                self.windows.push(window);
            }
        }

        fn run(&mut self, milliseconds: usize) {
            for _ in 0..milliseconds {
                self.now += Duration::from_millis(1);
                for window in &mut self.windows {
                    let half = window.size / 2;
                    assert!(window.receive(half.into()));
                    assert!(window.consume(&mut self.pool, half as usize));
                    let grant = window.grant(&self.config, &mut self.pool, self.min_rtt, self.now);
                    assert!(grant.is_some());
                }
            }
        }

        fn sizes(&self) -> Vec<u32> {
            self.windows.iter().map(Window::size).collect()
        }
    }

    const NEAR: Duration = Duration::from_micros(100);
    const FAR: Duration = Duration::from_millis(20);

    #[test]
    fn windows_that_share_a_fast_link_do_not_grow_as_if_each_had_it_alone() {
        let sizes = |count, min_rtt| {
            let mut together = Together::new(min_rtt);
            together.open(count);
            together.run(20);
            together.sizes()
        };
        assert_eq!(sizes(1, NEAR), [4 * 1024 * 1024]);
        assert_eq!(sizes(16, NEAR), [SHARED; 16]);
        // Where credit takes long on its way, every stream needs its window.
        assert!(sizes(8, FAR).iter().all(|size| *size >= 1024 * 1024));
    }

    #[test]
    fn what_a_tunnel_carried_before_keeps_no_window_small() {
        let mut together = Together::new(NEAR);
        together.open(1);
        together.run(1000);
        together.windows.clear();
        together.open(1);
        together.run(20);
        assert_eq!(together.sizes(), [4 * 1024 * 1024], "it came late");

        let mut together = Together::new(NEAR);
        together.open(16);
        together.run(1000);
        together.windows.truncate(1);
        together.run(20);
        assert_eq!(together.sizes(), [4 * 1024 * 1024], "it is left alone");
    }

    #[test]
    fn streams_that_have_grown_and_fallen_idle_leave_room_for_others() {
        let config = Config::default();
        let mut pool = Pool::new(config.growth_budget, Arc::clone(&config.budget));
        let now = Instant::now();
        let mut sizes = Vec::new();
        for _ in 0..64 {
            let mut window = Window::default();
            window.start(&config, &mut pool, now);
            use_fast(&mut window, &config, &mut pool, now);
            sizes.push(window.size);
        }
        assert_eq!(sizes[..12], [config.max_window; 12]);
        assert_eq!(sizes[16..], [MODEST; 48]);
        assert!(pool.used() <= config.growth_budget);
    }

    #[test]
    fn the_tunnels_of_a_process_grow_within_its_budget() {
        let budget = Arc::new(Budget::new(1024 * 1024));
        let config = Config {
            budget: Arc::clone(&budget),
            ..Config::default()
        };
        let now = Instant::now();
        let mut pools: Vec<Pool> = (0..3)
            .map(|_| Pool::new(config.growth_budget, Arc::clone(&budget)))
            .collect();
        let mut windows = Vec::new();
        for i in 0..60 {
            let pool = &mut pools[i % 3];
            let mut window = Window::default();
            window.start(&config, pool, now);
            use_fast(&mut window, &config, pool, now);
            windows.push(window);
            let used: u64 = pools.iter().map(Pool::used).sum();
            assert_eq!(used, budget.growth_used());
            assert!(used <= 768 * 1024);
        }
        assert_eq!(windows[0].size, 512 * 1024, "a quarter was free until then");
        assert_eq!(windows[59].size, config.base_window);
        assert!(pools[2].refused()[1] > 0 && pools[2].refused()[0] == 0);
        drop(pools);
        assert_eq!(budget.growth_used(), 0);
    }

    #[test]
    fn large_windows_get_smaller_when_the_pool_is_nearly_used_up() {
        let config = Config::default();
        let mut pool = Pool::new(config.growth_budget, Arc::clone(&config.budget));
        let now = Instant::now();
        let mut large = Window::default();
        large.start(&config, &mut pool, now);
        use_fast(&mut large, &config, &mut pool, now);
        assert_eq!(large.size, config.max_window);
        // Others take what is left, in modest windows: 80 % and more.
        let rest = config.growth_budget - pool.used();
        assert!(pool.take(rest - 1000));
        let mut promised = Vec::new();
        for _ in 0..8 {
            let rest = large.limit - large.received;
            assert!(large.receive(rest));
            assert!(large.consume(&mut pool, rest as usize));
            large.grant(&config, &mut pool, None, now);
            promised.push(large.limit - large.consumed);
        }
        let steps = [2_u64 << 20, 1 << 20, 512 << 10, 256 << 10];
        assert_eq!(promised[..4], steps);
        assert_eq!(large.size, MODEST, "fast as it is, it does not grow again");
        assert_eq!(
            u64::from(large.charged),
            u64::from(MODEST - config.base_window)
        );
        // The pool has room again.
        pool.give_back(rest - 1000);
        use_fast(&mut large, &config, &mut pool, now);
        assert_eq!(large.size, config.max_window);
    }

    #[test]
    fn a_slow_stream_gets_smaller_and_the_limit_never_falls() {
        let config = config();
        let mut pool = Pool::new(config.growth_budget, Arc::clone(&config.budget));
        let mut now = Instant::now();
        let mut window = Window::default();
        window.start(&config, &mut pool, now);
        let mut last = 0;
        for i in 0..40 {
            let rest = window.limit - window.received;
            assert!(window.receive(rest));
            assert!(window.consume(&mut pool, rest as usize));
            now += if i < 3 { Duration::ZERO } else { SLOW * 2 };
            let limit = window.grant(&config, &mut pool, None, now).unwrap();
            assert!(limit > last);
            last = limit;
        }
        assert_eq!(window.size, config.initial_window);
    }

    #[test]
    fn many_streams_start_with_the_base_window_when_half_of_the_pool_is_gone() {
        let config = config();
        let mut pool = Pool::new(config.growth_budget, Arc::clone(&config.budget));
        let now = Instant::now();
        let sizes: Vec<u32> = (0..30)
            .map(|_| Window::default().start(&config, &mut pool, now))
            .collect();
        assert_eq!(sizes[0], config.initial_window);
        assert_eq!(sizes[29], config.base_window);
        assert!(pool.used() < config.growth_budget);
    }
}
