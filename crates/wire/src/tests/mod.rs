//! Tests of the codec, clause by clause and by chance.

mod fragmentation;
mod handshake;
mod transmission;

use crate::{Export, ExportId};

fn exports(names: &[&str]) -> Vec<Export> {
    let export = |(index, name): (usize, &&str)| Export {
        id: ExportId(index as u32 + 7),
        name: (*name).to_string(),
        description: format!("disk {name}"),
        bytes: 1 << 30,
        read_only: *name == "frozen",
        block_bytes_min: 512,
    };
    names.iter().enumerate().map(export).collect()
}
