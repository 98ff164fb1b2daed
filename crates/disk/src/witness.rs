//! Who writes down what is about to be admitted, so that a successor can tell whether it was.

use bowline_store::{Refused, Seq, Ticket};

use crate::event::Submitted;
use crate::{Disks, Volume};

/// Told of a request's change before it is offered to the store, in the same turn and with nothing
/// in between. If the process dies there, whether the store's order has reached the number says
/// whether the request took effect: it is one change, whatever it consists of.
pub trait Witness {
    /// The request's change is offered as this number.
    fn intends(&self, ticket: Ticket, seq: Seq);

    /// The store did not take it: the number is somebody else's.
    fn refused(&self, ticket: Ticket);

    /// The request has failed, and the pages of its payload are about to be given back.
    fn lets_go(&self, ticket: Ticket);
}

impl<V: Volume> Disks<V> {
    /// Has everything that is admitted witnessed from now on.
    pub fn set_witness(&mut self, witness: std::rc::Rc<dyn Witness>) {
        self.witness = Some(witness);
    }

    /// A change that a dead predecessor had admitted with this number and not answered yet: answers
    /// it as the disk's mode wants, now or by [`DiskEvent::Done`](crate::DiskEvent::Done).
    pub fn admitted(
        &mut self,
        ticket: Ticket,
        disk: bowline_store::DiskId,
        seq: Seq,
        bytes: u64,
        fua: bool,
    ) -> Submitted {
        // All that the predecessor had admitted may be this disk's.
        let seq = self.state(disk).seq.max(seq);
        self.answer(disk, ticket, seq, bytes, fua)
    }
}

/// Offers the change of a request to the store.
pub(crate) fn offer<V: Volume>(
    witness: Option<&dyn Witness>,
    volume: &mut V,
    ticket: Ticket,
    change: impl FnOnce(&mut V) -> Result<Seq, Refused>,
) -> Result<Seq, Refused> {
    let Some(witness) = witness else { return change(volume) };
    let intended = Seq(volume.admitted_through().0 + 1);
    witness.intends(ticket, intended);
    let result = change(volume);
    match &result {
        Ok(seq) => assert_eq!(*seq, intended, "the store gives the next number"),
        Err(_) => witness.refused(ticket),
    }
    result
}
