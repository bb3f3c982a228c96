//! Seats and queues of all levels: pure bookkeeping, no clock.
//!
//! Flows of one level take turns by start-time fair queuing: each queue has a tag, the seat-time it
//! has been given so far; the queue with the smallest tag goes next; the level's own tag follows
//! the one that went last, and a queue that was idle begins from there, so that nobody saves up
//! turns. A request is charged an estimate when it begins and the truth when it ends. A flow picks
//! the shortest of a few queues that its number points to (shuffle sharding), so one flow fills at
//! most these.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::flows::{Flows, LevelConfig, Queuing};

/// What a request is charged when it begins, in seconds for each seat.
const ESTIMATE: f64 = 0.003;

/// What arrived.
pub enum Arrival {
    Runs(Ticket),
    Waits,
    Refused,
}

/// Seats that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    level: u32,
    queue: u32,
    width: u32,
}

struct Queue<W> {
    waiting: VecDeque<(u32, W)>,
    running: u32,
    tag: f64,
}

struct Level<W> {
    name: String,
    config: LevelConfig,
    /// Seats that are its own.
    nominal: u32,
    in_use: u32,
    tag: f64,
    queues: Vec<Queue<W>>,
}

/// All levels. `W` is whoever waits.
pub struct Levels<W> {
    /// Whether somebody has gone meanwhile; they leave their queue when it is full.
    is_gone: fn(&W) -> bool,
    seats: u32,
    in_use: u32,
    /// How many wait, over all queues: mostly nobody, and then there are hundreds to look at.
    waiting: usize,
    levels: Vec<Level<W>>,
    /// Places in `levels`, which never move: tickets refer to them.
    by_name: HashMap<String, usize>,
    /// What the levels were last configured from.
    flows: Option<Arc<Flows>>,
}

impl<W> Levels<W> {
    pub fn new(seats: u32, is_gone: fn(&W) -> bool) -> Levels<W> {
        let (levels, by_name) = (Vec::new(), HashMap::new());
        Levels { is_gone, seats, in_use: 0, waiting: 0, levels, by_name, flows: None }
    }

    /// Takes over a changed configuration. Who waits goes on waiting.
    pub fn configure(&mut self, flows: &Arc<Flows>) {
        if self.flows.as_ref().is_some_and(|known| Arc::ptr_eq(known, flows)) {
            return;
        }
        self.flows = Some(flows.clone());
        let total: u64 = flows.levels.values().map(|level| u64::from(level.shares)).sum();
        for (name, config) in &flows.levels {
            let nominal = u64::from(self.seats) * u64::from(config.shares);
            let nominal = u32::try_from(nominal.div_ceil(total.max(1))).unwrap_or(self.seats);
            let place = match self.by_name.get(name) {
                Some(place) => *place,
                None => {
                    self.levels.push(Level::new(name, config));
                    self.by_name.insert(name.clone(), self.levels.len() - 1);
                    self.levels.len() - 1
                }
            };
            let level = &mut self.levels[place];
            level.config = config.clone();
            level.nominal = nominal.max(1);
            let queues = config.queuing.map_or(1, |queuing| queuing.queues);
            // Queues that are too many stay until nobody uses them: tickets point to them.
            while level.queues.len() < queues {
                level.queues.push(Queue::new());
            }
        }
        for level in &mut self.levels {
            if !flows.levels.contains_key(&level.name) {
                level.nominal = 1;
            }
        }
    }

    /// A request of this flow arrives.
    pub fn arrive(&mut self, level: &str, flow: u64, width: u32, waiter: W) -> Arrival {
        let Some(place) = self.by_name.get(level).copied() else {
            return Arrival::Refused;
        };
        let width = width.min(self.most(place));
        let own = &mut self.levels[place];
        let queue = own.choose(flow);
        let nobody_waits =
            self.waiting == 0 || own.queues.iter().all(|queue| queue.waiting.is_empty());
        if own.queues[queue].running == 0 && own.queues[queue].waiting.is_empty() {
            own.queues[queue].tag = own.queues[queue].tag.max(own.tag);
        }
        if nobody_waits && self.has_room(place, width) {
            return Arrival::Runs(self.begin(place, queue, width));
        }
        let own = &mut self.levels[place];
        let most = own.config.queuing.map_or(0, |queuing| queuing.length_max);
        let waiting = &mut own.queues[queue].waiting;
        if waiting.len() >= most {
            let before = waiting.len();
            waiting.retain(|(_, waiter)| !(self.is_gone)(waiter));
            self.waiting -= before - waiting.len();
        }
        if waiting.len() >= most {
            return Arrival::Refused;
        }
        waiting.push_back((width, waiter));
        self.waiting += 1;
        Arrival::Waits
    }

    /// A request has been answered and has used this time. Returns who begins now.
    pub fn finish(&mut self, ticket: Ticket, used: Duration) -> Vec<(W, Ticket)> {
        let place = ticket.level as usize;
        self.in_use -= ticket.width;
        let level = &mut self.levels[place];
        level.in_use -= ticket.width;
        let queue = &mut level.queues[ticket.queue as usize];
        queue.running -= 1;
        let truth = used.as_secs_f64();
        queue.tag += f64::from(ticket.width) * (truth - ESTIMATE);
        let mut begun = Vec::new();
        if self.waiting == 0 {
            return begun;
        }
        // Its own level first; what is left may be lent to others.
        self.dispatch(place, &mut begun);
        for other in (0..self.levels.len()).filter(|other| *other != place) {
            self.dispatch(other, &mut begun);
        }
        begun
    }

    fn dispatch(&mut self, place: usize, begun: &mut Vec<(W, Ticket)>) {
        while let Some(queue) = self.levels[place].next() {
            let width = self.levels[place].queues[queue].waiting[0].0.min(self.most(place));
            if !self.has_room(place, width) {
                return;
            }
            let (_, waiter) = self.levels[place].queues[queue]
                .waiting
                .pop_front()
                .expect("the next queue is not empty");
            self.waiting -= 1;
            begun.push((waiter, self.begin(place, queue, width)));
        }
    }

    fn begin(&mut self, place: usize, queue: usize, width: u32) -> Ticket {
        self.in_use += width;
        let level = &mut self.levels[place];
        level.in_use += width;
        let own = &mut level.queues[queue];
        level.tag = level.tag.max(own.tag);
        own.tag += f64::from(width) * ESTIMATE;
        own.running += 1;
        let index = |number: usize| u32::try_from(number).expect("levels and queues are few");
        Ticket { level: index(place), queue: index(queue), width }
    }

    /// The most seats that one request of a level may ever have: one that needs more than there are
    /// would wait for ever.
    fn most(&self, place: usize) -> u32 {
        self.levels[place].nominal.max(1)
    }

    /// Whether a request may begin: in its level's own seats, or in such as others do not need.
    fn has_room(&self, place: usize, width: u32) -> bool {
        let level = &self.levels[place];
        if level.in_use + width <= level.nominal {
            return true;
        }
        let limit = level.config.borrowing_percent.map(|percent| {
            let more = u64::from(level.nominal) * u64::from(percent) / 100;
            level.nominal.saturating_add(u32::try_from(more).unwrap_or(u32::MAX))
        });
        if limit.is_some_and(|limit| level.in_use + width > limit) {
            return false;
        }
        let others = self.levels.iter().enumerate().filter(|(other, _)| *other != place);
        let reserved: u32 = others.map(|(_, other)| other.reserved()).sum();
        self.in_use + width + reserved <= self.seats
    }
}

impl<W> Level<W> {
    fn new(name: &str, config: &LevelConfig) -> Level<W> {
        Level {
            name: name.to_owned(),
            config: config.clone(),
            nominal: 1,
            in_use: 0,
            tag: 0.0,
            queues: Vec::new(),
        }
    }

    /// Seats that it does not use and does not lend.
    fn reserved(&self) -> u32 {
        let kept = self.nominal - self.nominal * self.config.lendable_percent / 100;
        kept.saturating_sub(self.in_use)
    }

    /// The shortest of the queues that a flow's number points to.
    fn choose(&self, flow: u64) -> usize {
        let length = |card: &usize| {
            let queue = &self.queues[*card];
            (queue.waiting.len(), queue.running)
        };
        self.cards(flow).min_by_key(length).unwrap_or(0)
    }

    /// The queues that a flow's number points to, some perhaps twice.
    fn cards(&self, flow: u64) -> impl Iterator<Item = usize> {
        let none = Queuing { queues: 1, hand_size: 1, length_max: 0 };
        let queuing = self.config.queuing.unwrap_or(none);
        let queues = queuing.queues.min(self.queues.len()).max(1) as u64;
        (0..queuing.hand_size as u64).map(move |card| {
            let number = mixed(flow.wrapping_add(card)) % queues;
            usize::try_from(number).expect("below the number of queues")
        })
    }

    /// The queue whose turn it is.
    fn next(&self) -> Option<usize> {
        let waiting = self.queues.iter().enumerate().filter(|(_, queue)| !queue.waiting.is_empty());
        waiting.min_by(|(_, a), (_, b)| a.tag.total_cmp(&b.tag)).map(|(place, _)| place)
    }
}

/// Spreads neighbouring numbers over all of 64 bits.
fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

#[cfg(test)]
impl<W> Levels<W> {
    /// How many requests of one seat a level may have by itself.
    pub fn nominal_of(&mut self, flows: &Arc<Flows>, level: &str) -> u32 {
        self.configure(flows);
        self.levels[self.by_name[level]].nominal
    }

    /// The queues that a flow may use.
    pub fn cards_of(&self, level: &str, flow: u64) -> std::collections::BTreeSet<usize> {
        self.levels[self.by_name[level]].cards(flow).collect()
    }
}

impl<W> Queue<W> {
    fn new() -> Queue<W> {
        Queue { waiting: VecDeque::new(), running: 0, tag: 0.0 }
    }
}
