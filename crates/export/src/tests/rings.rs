use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bowline_arena::{Memory, Pages, Span};
use proptest::prelude::*;

use super::Random;
use crate::budget::{Lane, Loan};
use crate::receive::ReceiveRing;
use crate::records::{Region, Shape};
use crate::send::SendQueue;

fn pages() -> (Rc<Memory>, RefCell<Pages>) {
    let memory = Rc::new(Memory::private(64 * 4096));
    (Rc::clone(&memory), RefCell::new(Pages::whole(memory)))
}

proptest! {
    #[test]
    fn a_receive_ring_is_a_queue_of_bytes(seed: u64) {
        let (memory, pages) = pages();
        let (mut random, mut ring) = (Random(seed), ReceiveRing::default());
        let mut model = VecDeque::new();
        ring.attach(&memory, pages.borrow_mut().take(1).unwrap());
        for _ in 0..200 {
            let parts = ring.free_parts(random.below(5000) as u32);
            let space: u64 = parts.iter().map(|part| u64::from(part.bytes)).sum();
            prop_assert!(space <= 4096 - model.len() as u64);
            let count = random.below(space + 1) as usize;
            let bytes = random.bytes(count);
            model.extend(bytes.iter().copied());
            let mut rest = &bytes[..];
            for part in parts {
                let (now, later) = rest.split_at(rest.len().min(part.bytes as usize));
                memory.land(part.sub(0, now.len() as u32), now);
                rest = later;
            }
            ring.received(count as u32);
            prop_assert_eq!(ring.used() as usize, model.len());
            if let Some(head) = ring.peek::<28>(&memory) {
                prop_assert!(model.iter().take(28).eq(&head));
            }
            let skip = random.below(model.len() as u64 + 1) as u32;
            let slices = ring.slices(&memory, skip, ring.used() - skip).concat();
            prop_assert!(model.iter().skip(skip as usize).eq(&slices));
            ring.consume(skip);
            model.drain(..skip as usize);
            if ring.is_light() && random.below(3) == 0 {
                let span = ring.detach(&memory).unwrap();
                prop_assert!(!ring.is_attached());
                ring.attach(&memory, span);
            }
        }
    }

    #[test]
    fn a_send_queue_keeps_the_order_of_headers_and_data(seed: u64) {
        let (memory, pages) = pages();
        let (mut random, mut queue) = (Random(seed), SendQueue::default());
        let (mut expected, mut sent) = (Vec::new(), Vec::new());
        let [ring, page, region] =
            [1, 1, 8].map(|count| pages.borrow_mut().take(count).unwrap());
        queue.attach(ring, page);
        let shape = Shape::new(1, 1, memory.bytes_total());
        let mut links = Region::format(&memory, region, shape).links;
        let mut lent = 0;
        for _ in 0..300 {
            let count = 1 + random.below(200) as u32;
            if random.below(3) == 0 && lent < 8 {
                let mut span: Span = pages.borrow_mut().take(1).unwrap();
                let bytes = random.bytes(4096);
                memory.slice_mut(&mut span).copy_from_slice(&bytes);
                let skip = random.below(3000) as u32;
                expected.extend_from_slice(&bytes[skip as usize..(skip + count) as usize]);
                let piece = (Loan { span, lane: Lane::Small }, skip, count);
                queue.push_data(&memory, &mut links, 0, [piece]);
                lent += 1;
            } else if queue.free() >= count {
                let bytes = random.bytes(count as usize);
                expected.extend_from_slice(&bytes);
                queue.push_header(&memory, &bytes);
            }
            let mut bytes = Vec::new();
            queue.parts().into_iter().for_each(|part| memory.fetch(part, &mut bytes));
            prop_assert_eq!(bytes.len() as u64, queue.bytes());
            let count = random.below(bytes.len() as u64 / 2 + 2).min(bytes.len() as u64) as u32;
            sent.extend_from_slice(&bytes[..count as usize]);
            let mut done = Vec::new();
            queue.sent(count, &mut done);
            lent -= done.len();
            done.into_iter().for_each(|loan| pages.borrow_mut().give(loan.span));
            prop_assert!(expected.starts_with(&sent));
        }
        prop_assert_eq!(expected.len() - sent.len(), queue.bytes() as usize);
    }
}
