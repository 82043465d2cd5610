//! The book-keeping of an instance's calls: which are under way, and whose result comes next.

use std::collections::VecDeque;

/// The calls of one instance. A call is known to the library by its slot, which is used again once it is answered.
#[derive(Debug)]
pub(super) struct Calls {
    slots: Vec<Slot>,
    free: Vec<u32>,
    under_way: usize,
    /// Calls that have ended and whose result is not here.
    ended: usize,
    /// Answers without a call, when results come in any order.
    nulls: Vec<u64>,
    /// Calls and answers without one in the order given, when results keep it; otherwise None.
    order: Option<VecDeque<Entry>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Slot {
    Free,
    UnderWay(u64),
    Ended(u64),
}

#[derive(Debug, Clone, Copy)]
enum Entry {
    Call(u32),
    Null(u64),
}

/// Answers in the order in which they are given on.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answers {
    /// Whose they are.
    pub(super) ids: Vec<u64>,
    /// Row of the library's results, None for NULL without a call.
    pub(super) rows: Vec<Option<u32>>,
}

impl Calls {
    pub(super) fn new(ordered: bool) -> Self {
        let order = ordered.then(VecDeque::new);
        Self { slots: Vec::new(), free: Vec::new(), under_way: 0, ended: 0, nulls: Vec::new(), order }
    }

    /// Calls without a result.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Begins a call and gives its slot.
    pub(super) fn begin(&mut self, id: u64) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() as u32 - 1
        });
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Slot::UnderWay(id);
        }
        self.under_way += 1;
        if let Some(order) = &mut self.order {
            order.push_back(Entry::Call(slot));
        }
        slot
    }

    /// Answers `id` with NULL, without a call.
    pub(super) fn answer_null(&mut self, id: u64) {
        match &mut self.order {
            Some(order) => order.push_back(Entry::Null(id)),
            None => self.nulls.push(id),
        }
    }

    /// The library has let go of a call.
    pub(super) fn ended(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && let Slot::UnderWay(id) = *place
        {
            *place = Slot::Ended(id);
            self.ended += 1;
        }
    }

    /// Whether the library must have a result, or be dead.
    pub(super) fn result_is_due(&self) -> bool {
        match &self.order {
            None => self.ended > 0,
            Some(order) => {
                order.iter().find_map(|entry| match entry {
                    Entry::Call(slot) => Some(matches!(self.slots.get(*slot as usize), Some(Slot::Ended(_)))),
                    Entry::Null(_) => None,
                }) == Some(true)
            }
        }
    }

    /// Whether there are answers that need no result of the library.
    pub(super) fn null_is_due(&self) -> bool {
        !self.nulls.is_empty() || matches!(self.order.as_ref().and_then(VecDeque::front), Some(Entry::Null(_)))
    }

    /// Takes the library's results, by slot and in its order, and the answers that go with them. None if the library
    /// named a slot that has no call, or broke the order.
    pub(super) fn finish(&mut self, slots: &[u64]) -> Option<Answers> {
        let mut answers = Answers { ids: Vec::with_capacity(slots.len()), rows: Vec::with_capacity(slots.len()) };
        for (row, slot) in slots.iter().enumerate() {
            self.give_nulls(&mut answers);
            let slot = u32::try_from(*slot).ok()?;
            if let Some(order) = &mut self.order
                && !matches!(order.pop_front(), Some(Entry::Call(first)) if first == slot)
            {
                return None;
            }
            let place = self.slots.get_mut(slot as usize)?;
            let id = match std::mem::replace(place, Slot::Free) {
                Slot::Free => return None,
                Slot::UnderWay(id) => id,
                Slot::Ended(id) => {
                    self.ended -= 1;
                    id
                }
            };
            self.under_way -= 1;
            self.free.push(slot);
            answers.ids.push(id);
            answers.rows.push(Some(row as u32));
        }
        self.give_nulls(&mut answers);
        Some(answers)
    }

    /// Gives on the answers without a call that are next.
    fn give_nulls(&mut self, answers: &mut Answers) {
        let order = self.order.as_mut();
        let mut give = |id| {
            answers.ids.push(id);
            answers.rows.push(None);
        };
        match order {
            None => self.nulls.drain(..).for_each(give),
            Some(order) => {
                while let Some(Entry::Null(id)) = order.front() {
                    give(*id);
                    order.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(answers: Option<Answers>) -> Vec<(u64, Option<u32>)> {
        let answers = answers.expect("the results fit the calls");
        answers.ids.into_iter().zip(answers.rows).collect()
    }

    #[test]
    fn unordered_results_are_due_when_any_call_has_ended() {
        let mut calls = Calls::new(false);
        let (a, b) = (calls.begin(10), calls.begin(11));
        assert!(!calls.result_is_due());
        calls.ended(b);
        assert!(calls.result_is_due());
        assert_eq!(ids(calls.finish(&[b.into()])), [(11, Some(0))]);
        assert!(!calls.result_is_due());
        assert_eq!(calls.under_way(), 1);
        // The slot is used again, the other call keeps its own.
        assert_eq!(calls.begin(12), b);
        calls.ended(a);
        calls.ended(b);
        assert_eq!(ids(calls.finish(&[b.into(), a.into()])), [(12, Some(0)), (10, Some(1))]);
        assert_eq!(calls.under_way(), 0);
    }

    #[test]
    fn ordered_results_are_due_when_the_first_call_has_ended() {
        let mut calls = Calls::new(true);
        let (a, b) = (calls.begin(10), calls.begin(11));
        calls.ended(b);
        assert!(!calls.result_is_due());
        calls.ended(a);
        assert!(calls.result_is_due());
        assert_eq!(ids(calls.finish(&[a.into(), b.into()])), [(10, Some(0)), (11, Some(1))]);
    }

    #[test]
    fn nulls_keep_their_place_in_the_order() {
        let mut calls = Calls::new(true);
        calls.answer_null(1);
        let a = calls.begin(2);
        calls.answer_null(3);
        let b = calls.begin(4);
        assert!(calls.null_is_due());
        assert_eq!(ids(calls.finish(&[])), [(1, None)]);
        assert!(!calls.null_is_due());
        assert_eq!(ids(calls.finish(&[a.into()])), [(2, Some(0)), (3, None)]);
        assert_eq!(ids(calls.finish(&[b.into()])), [(4, Some(0))]);
        let mut calls = Calls::new(false);
        calls.answer_null(1);
        let a = calls.begin(2);
        calls.answer_null(3);
        assert_eq!(ids(calls.finish(&[a.into()])), [(1, None), (3, None), (2, Some(0))]);
    }

    #[test]
    fn results_of_no_call_or_out_of_order_are_refused() {
        let mut calls = Calls::new(false);
        calls.begin(10);
        assert_eq!(calls.finish(&[7]), None);
        assert_eq!(calls.finish(&[u64::MAX]), None);
        let mut calls = Calls::new(true);
        let (_, b) = (calls.begin(10), calls.begin(11));
        assert_eq!(calls.finish(&[b.into()]), None);
    }
}
