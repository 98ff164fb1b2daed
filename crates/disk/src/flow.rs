//! How operations move: wait for those before them, read old blocks, are admitted, are answered.

use bowline_arena::Span;
use bowline_store::{BLOCK_BYTES, Change, DiskId, Payload, ReadError, Refused, Seq, Ticket};

use crate::area::Area;
use crate::broken::Broken;
use crate::disks::Asked;
use crate::event::{DiskEvent, Submitted};
use crate::operation::{Operation, OperationId, Phase};
use crate::staging::Work;
use crate::witness::offer;
use crate::{Disks, IoError, IoErrorKind, Volume};

impl<V: Volume> Disks<V> {
    /// Takes a request that cannot be admitted at once.
    pub(crate) fn enqueue(
        &mut self,
        disk: DiskId,
        ticket: Ticket,
        area: &Area,
        work: Work,
        loss_bytes: u64,
        fua: bool,
    ) -> Submitted {
        let id = OperationId(self.operations);
        self.operations += 1;
        let blocks = (area.first, area.end());
        let blockers = match self.is_broken(Broken::MergeWithoutLock) {
            true => 0,
            false => self.state(disk).queue.blockers(blocks),
        };
        let operation = Operation {
            id,
            ticket,
            blocks,
            loss_bytes,
            fua,
            phase: Phase::Blocked(blockers),
            changes: work.changes,
            merges: work.merges,
            seq: Seq(0),
            failure: None,
        };
        self.state(disk).queue.push(operation);
        if blockers == 0 {
            self.runnable.push_back((disk, id));
            self.run();
        }
        match self.is_broken(Broken::ReplyBeforeMerge) {
            true => Submitted::Done(Ok(())),
            false => Submitted::Pending,
        }
    }

    /// Begins what waits for nobody any more.
    pub(crate) fn run(&mut self) -> bool {
        let mut moved = false;
        while let Some((disk, id)) = self.runnable.pop_front() {
            moved = true;
            self.begin(disk, id);
        }
        moved
    }

    fn begin(&mut self, disk: DiskId, id: OperationId) {
        if let Err(error) = self.still_there(disk, id) {
            return self.finish(disk, id, Err(error));
        }
        let Some(operation) = self.state(disk).queue.get_mut(id) else { return };
        operation.phase = Phase::Reading(operation.merges.len() as u32);
        let merges = operation.merges.iter_mut().enumerate();
        let reads = merges.filter_map(|(at, merge)| Some((at, merge.edge.lba, merge.old.take()?)));
        let reads: Vec<_> = reads.collect();
        if reads.is_empty() {
            return self.admit(disk, id);
        }
        self.counters.merges += reads.len() as u64;
        for (merge, lba, span) in reads {
            let ticket = self.asked.insert(Asked::OldBlock { disk, operation: id, merge });
            self.volume.read(ticket, disk, lba, span);
        }
    }

    /// An old block has been read.
    pub(crate) fn old_block(
        &mut self,
        disk: DiskId,
        id: OperationId,
        merge: usize,
        span: Span,
        result: Result<(), ReadError>,
    ) {
        let memory = std::rc::Rc::clone(&self.memory);
        let Some(operation) = self.state(disk).queue.get_mut(id) else {
            unreachable!("an operation stays until its old blocks are read")
        };
        match result {
            Ok(()) => operation.merge(&memory, merge, &span),
            Err(error) => operation.failure = Some(error.into()),
        }
        let Phase::Reading(left) = &mut operation.phase else {
            unreachable!("only an operation that reads is given an old block")
        };
        *left -= 1;
        let is_last = *left == 0;
        let failure = if is_last { operation.failure.take() } else { None };
        self.pages.borrow_mut().give(span);
        match failure {
            Some(error) => self.finish(disk, id, Err(error)),
            None if is_last => self.admit(disk, id),
            None => {}
        }
    }

    /// Has an operation admitted, after those that wait for room already.
    fn admit(&mut self, disk: DiskId, id: OperationId) {
        let operation = self.states.get_mut(&disk).and_then(|state| state.queue.get_mut(id));
        let Some(operation) = operation else { return };
        operation.phase = Phase::Ready;
        #[cfg(test)]
        crate::broken::spoil(self.broken, &self.memory, operation);
        let must_wait = !self.starving.is_empty() || self.store_is_full;
        if must_wait || !self.is_admitted(disk, id) {
            let state = self.state(disk);
            if !std::mem::replace(&mut state.is_starving, true) {
                self.starving.push_back(disk);
            }
        }
    }

    /// Serves operations that wait for room, disk by disk in turn.
    pub(crate) fn serve_starving(&mut self) -> bool {
        let mut moved = false;
        while !self.store_is_full
            && let Some(disk) = self.starving.front().copied()
        {
            if let Some(id) = self.state(disk).queue.first_ready() {
                if !self.is_admitted(disk, id) {
                    break;
                }
                moved = true;
            }
            self.starving.pop_front();
            let state = self.state(disk);
            state.is_starving = state.queue.first_ready().is_some();
            if state.is_starving {
                self.starving.push_back(disk);
            }
        }
        moved
    }

    /// Whether an operation has been admitted, or has failed: it is gone then. It is still there if
    /// the store has no room for it now.
    fn is_admitted(&mut self, disk: DiskId, id: OperationId) -> bool {
        if let Err(error) = self.still_there(disk, id) {
            self.finish(disk, id, Err(error));
            return true;
        }
        let is_split = self.is_broken(Broken::SplitAdmission);
        loop {
            let operation = self.states.get_mut(&disk).and_then(|s| s.queue.get_mut(id));
            let Some(operation) = operation else { return true };
            let left = operation.changes.make_contiguous();
            if left.is_empty() {
                let seq = operation.seq;
                self.finish(disk, id, Ok(seq));
                return true;
            }
            let count = if is_split { 1 } else { left.len() };
            let witness = self.witness.as_deref();
            let submitted = offer(witness, &mut self.volume, operation.ticket, |volume| {
                submit(volume, disk, &mut left[..count])
            });
            match submitted {
                Ok(seq) => {
                    operation.seq = seq;
                    operation.changes.drain(..count);
                }
                Err(Refused::Busy) => {
                    self.store_is_full = true;
                    return false;
                }
                Err(refused) => {
                    self.finish(disk, id, Err(refused.into()));
                    return true;
                }
            }
        }
    }

    /// The disk may have been destroyed, shrunk or locked while the operation waited.
    fn still_there(&mut self, disk: DiskId, id: OperationId) -> Result<(), IoError> {
        let end = self.state(disk).queue.get_mut(id).map_or(0, |o| o.blocks.1.0);
        let Some(found) = self.volume.disk(disk) else {
            return Err(IoError::new(IoErrorKind::Invalid, format!("disk {disk} is gone")));
        };
        if end > found.bytes.div_ceil(BLOCK_BYTES) {
            let text = format!("disk {} was made smaller while the request waited", found.name);
            return Err(IoError::new(IoErrorKind::OutOfRange, text));
        }
        if found.read_only {
            let text = format!("disk {} is read-only", found.name);
            return Err(IoError::new(IoErrorKind::ReadOnly, text));
        }
        Ok(())
    }

    /// Lets go of an operation and answers it.
    fn finish(&mut self, disk: DiskId, id: OperationId, result: Result<Seq, IoError>) {
        let Some(state) = self.states.get_mut(&disk) else { return };
        let runnable = &mut self.runnable;
        let removed = state.queue.remove(id, |next| runnable.push_back((disk, next)));
        let Some(operation) = removed else { return };
        let (ticket, bytes, fua) = (operation.ticket, operation.loss_bytes, operation.fua);
        if let (Err(_), Some(witness)) = (&result, &self.witness) {
            witness.lets_go(ticket);
        }
        let mut pages = self.pages.borrow_mut();
        operation.into_spans().for_each(|span| pages.give(span));
        drop(pages);
        let submitted = match result {
            Ok(seq) => self.answer(disk, ticket, seq, bytes, fua),
            Err(error) => Submitted::Done(Err(error)),
        };
        if let Submitted::Done(result) = submitted
            && !self.is_broken(Broken::ReplyBeforeMerge)
        {
            self.events.push_back(DiskEvent::Done { ticket, result });
        }
    }
}

fn submit(volume: &mut impl Volume, disk: DiskId, changes: &mut [Change]) -> Result<Seq, Refused> {
    let [change] = changes else { return volume.change(disk, changes) };
    match change {
        Change::Write { lba, spans } => {
            let mut payload = Payload::Owned(std::mem::take(spans));
            let result = volume.write(disk, *lba, &mut payload);
            if let Payload::Owned(left) = payload {
                *spans = left;
            }
            result
        }
        Change::Zero { lba, blocks } => volume.zero(disk, *lba, *blocks),
        Change::Discard { lba, blocks } => volume.discard(disk, *lba, *blocks),
    }
}
