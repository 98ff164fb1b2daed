//! What is under way at the store, by ticket.

use bowline_store::Ticket;

/// A table that gives each of its items a ticket and takes both back together. Tickets carry a
/// count of the reuses of their place, so an answer that comes twice finds nothing.
pub(crate) struct Slots<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub fn new() -> Slots<T> {
        Slots { places: Vec::new(), free: Vec::new() }
    }

    /// Number of items.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Keeps an item until its ticket comes back.
    pub fn insert(&mut self, item: T) -> Ticket {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        place.1 = Some(item);
        Ticket(u64::from(place.0) << 32 | u64::from(index))
    }

    /// The item of a ticket.
    ///
    /// # Panics
    /// If the ticket was not given out, or has come back already.
    pub fn take(&mut self, ticket: Ticket) -> T {
        let index = ticket.0 as u32;
        let place = self
            .places
            .get_mut(index as usize)
            .filter(|place| u64::from(place.0) == ticket.0 >> 32);
        let item = place.and_then(|place| {
            place.0 = place.0.wrapping_add(1);
            place.1.take()
        });
        let Some(item) = item else { panic!("the store answers {ticket:?}, which was not asked") };
        self.free.push(index);
        item
    }
}
