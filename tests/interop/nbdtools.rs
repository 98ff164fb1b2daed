//! libnbd's tools and nbdkit as a client.

use bowline_testbed::server::Kind;

use crate::{Bed, DISK_BYTES, over_each_transport, run};

over_each_transport! {
    nbdinfo_sees_size_and_abilities
    nbdinfo_lists_the_export
    nbdinfo_maps_a_new_disk_as_a_hole
    nbdinfo_knows_no_other_export
    nbdcopy_copies_both_ways
    nbdcopy_leaves_holes
    nbdsh_reads_what_it_wrote
    nbdsh_writes_with_fua
    nbdsh_trims_to_zeros
    nbdsh_zeroes
    nbdsh_zeroes_without_a_hole
    nbdsh_is_refused_past_the_end
    nbdsh_writes_single_sectors
    nbdsh_block_status_follows_the_data
    nbdsh_moves_32_mib_in_one_request
    nbdsh_sees_its_writes_over_other_connections
    nbdsh_keeps_many_requests_in_flight
    nbdsh_reads_without_structured_replies
    nbdsh_uses_the_oldest_way_to_an_export
    nbdkit_passes_it_on
}

/// Runs Python with a connected handle `h`, and structured replies and block status asked for.
fn nbdsh(bed: &Bed, script: &str) -> String {
    let base = "h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)";
    let connect = format!("h.connect_uri({:?})", bed.uri);
    // No strict checks on the client's side: it is the server that is tested.
    let free = "h.set_strict_mode(0)";
    run("nbdsh", &["-c", base, "-c", &connect, "-c", free, "-c", script])
}

fn info(bed: &Bed) -> serde_json::Value {
    let all: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--json", &bed.uri])).unwrap();
    all["exports"][0].clone()
}

fn nbdinfo_sees_size_and_abilities(bed: &Bed) {
    let info = info(bed);
    assert_eq!(info["export-size"], DISK_BYTES);
    for ability in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache"] {
        assert_eq!(info[ability], true, "{ability} in {info}");
    }
    assert_eq!(info["is_read_only"], false);
}

fn nbdinfo_lists_the_export(bed: &Bed) {
    let (root, name) = match bed.uri.split_once("///") {
        Some((scheme, rest)) => {
            let (name, query) = rest.split_once('?').unwrap();
            (format!("{scheme}///?{query}"), name)
        }
        None => {
            let (root, name) = bed.uri.rsplit_once('/').unwrap();
            (root.to_string(), name)
        }
    };
    let list: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--list", "--json", &root])).unwrap();
    let names: Vec<&str> = list["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|export| export["export-name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&name), "{name} is not in {names:?}");
}

fn nbdinfo_maps_a_new_disk_as_a_hole(bed: &Bed) {
    let map: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--map", "--json", &bed.uri])).unwrap();
    for extent in map.as_array().unwrap() {
        assert_eq!(extent["type"].as_u64().unwrap() & 2, 2, "not all zeros: {map}");
    }
}

fn nbdinfo_knows_no_other_export(bed: &Bed) {
    let wrong = match bed.uri.split_once('?') {
        Some((start, query)) => format!("{start}nonsense?{query}"),
        None => format!("{}nonsense", bed.uri),
    };
    let output = bowline_testbed::tool::output("nbdinfo", &["--size", &wrong]).unwrap();
    assert!(!output.status.success(), "an export that is not there was opened");
}

fn nbdcopy_copies_both_ways(bed: &Bed) {
    let (there, back) = (bed.data("there"), bed.file("back"));
    run("nbdcopy", &["--flush", &there, &bed.uri]);
    run("nbdcopy", &[&bed.uri, &back]);
    assert!(std::fs::read(there).unwrap() == std::fs::read(back).unwrap(), "the copies differ");
}

fn nbdcopy_leaves_holes(bed: &Bed) {
    let there = bed.data("there");
    run("nbdcopy", &["--flush", &there, &bed.uri]);
    let totals = run("nbdinfo", &["--map", "--totals", "--json", &bed.uri]);
    let totals: serde_json::Value = serde_json::from_str(&totals).unwrap();
    let data: u64 = totals
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["type"] == 0)
        .map(|extent| extent["size"].as_u64().unwrap())
        .sum();
    assert!(data <= DISK_BYTES * 6 / 10, "half is zeros, {data} are said to be data: {totals}");
}

fn nbdsh_reads_what_it_wrote(bed: &Bed) {
    let script = r"
h.pwrite(b'A' * 4096 + b'B' * 8192, 12288)
assert h.pread(12288, 12288) == b'A' * 4096 + b'B' * 8192
assert h.pread(4096, 8192) == bytearray(4096)
assert h.pread(1024, 16384 - 512) == b'A' * 512 + b'B' * 512";
    nbdsh(bed, script);
}

fn nbdsh_writes_with_fua(bed: &Bed) {
    nbdsh(
        bed,
        "h.pwrite(b'F' * 4096, 0, nbd.CMD_FLAG_FUA); assert h.pread(4096, 0) == b'F' * 4096",
    );
}

fn nbdsh_trims_to_zeros(bed: &Bed) {
    let script = r"
h.pwrite(b'T' * 1048576, 0)
h.trim(524288, 4096)
assert h.pread(4096, 0) == b'T' * 4096
assert h.pread(524288, 4096) == bytearray(524288)
assert h.pread(4096, 528384) == b'T' * 4096";
    nbdsh(bed, script);
}

fn nbdsh_zeroes(bed: &Bed) {
    let script = r"
h.pwrite(b'Z' * 1048576, 0)
h.zero(1000 * 512, 512)
assert h.pread(1048576, 0) == b'Z' * 512 + bytearray(1000 * 512) + b'Z' * (1048576 - 1001 * 512)";
    nbdsh(bed, script);
}

fn nbdsh_zeroes_without_a_hole(bed: &Bed) {
    let script = r"
h.pwrite(b'Z' * 1048576, 0)
h.zero(1048576, 0, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(1048576, 0) == bytearray(1048576)";
    nbdsh(bed, script);
    // A peer asks its file system, which calls zeros that keep their space a hole all the same.
    if bed.server.kind() == Kind::Bowline {
        let script = r"
seen = []
h.block_status(1048576, 0, lambda c, o, e, err: seen.extend(e))
assert all(flags == 2 for flags in seen[1::2]), seen";
        nbdsh(bed, script);
    }
}

fn nbdsh_is_refused_past_the_end(bed: &Bed) {
    let script = r"
size = h.get_size()
import errno
def refused(f, *numbers):
    try: f()
    except nbd.Error as e: assert e.errnum in numbers, e
    else: assert False, 'taken past the end'
refused(lambda: h.pread(4096, size), errno.EINVAL)
refused(lambda: h.pread(8192, size - 4096), errno.EINVAL)
refused(lambda: h.pwrite(b'x' * 8192, size - 4096), errno.ENOSPC, errno.EINVAL)
refused(lambda: h.trim(8192, size - 4096), errno.EINVAL)
refused(lambda: h.zero(8192, size - 4096), errno.ENOSPC, errno.EINVAL)
assert h.pread(4096, size - 4096) == bytearray(4096)
h.pwrite(b'e' * 4096, size - 4096)";
    nbdsh(bed, script);
}

fn nbdsh_writes_single_sectors(bed: &Bed) {
    let script = r"
h.pwrite(b'.' * 16384, 0)
for i in range(32): h.pwrite(bytes([65 + i]) * 512, i * 512)
assert h.pread(16384, 0) == b''.join(bytes([65 + i]) * 512 for i in range(32))
h.pwrite(b'x' * 1024, 4096 - 512)
assert h.pread(2048, 4096 - 1024) == b'G' * 512 + b'x' * 1024 + b'J' * 512";
    nbdsh(bed, script);
}

fn nbdsh_block_status_follows_the_data(bed: &Bed) {
    let script = r"
h.pwrite(b'D' * 1048576, 4194304)
h.flush()
seen = {}
def extent(context, offset, entries, error):
    for length, flags in zip(entries[::2], entries[1::2]):
        seen[offset] = (length, flags); offset += length
at = 0
while at < 16777216:
    h.block_status(16777216 - at, at, extent)
    last = max(seen); at = last + seen[last][0]
def state(offset): return [f for o, (n, f) in seen.items() if o <= offset < o + n][0]
assert state(0) & 2 == 2 and state(4194304) == 0 and state(5242879) == 0
assert state(5242880) & 2 == 2, seen";
    nbdsh(bed, script);
}

fn nbdsh_moves_32_mib_in_one_request(bed: &Bed) {
    let script = r"
import random
data = random.Random(1).randbytes(32 << 20)
h.pwrite(data, 4096)
assert h.pread(32 << 20, 4096) == data";
    nbdsh(bed, script);
}

fn nbdsh_sees_its_writes_over_other_connections(bed: &Bed) {
    let connect = format!("g = nbd.NBD(); g.connect_uri({:?})", bed.uri);
    let script = format!(
        "{connect}\nassert h.can_multi_conn()\nfor i in range(50):\n  \
         a, b = (h, g) if i % 2 else (g, h)\n  \
         a.pwrite(bytes([i]) * 4096, i * 4096)\n  b.flush()\n  \
         assert b.pread(4096, i * 4096) == bytes([i]) * 4096"
    );
    nbdsh(bed, &script);
}

fn nbdsh_keeps_many_requests_in_flight(bed: &Bed) {
    let script = r"
buffers = [nbd.Buffer.from_bytearray(bytearray([i % 251]) * 4096) for i in range(1000)]
cookies = [h.aio_pwrite(b, i * 4096) for i, b in enumerate(buffers)]
while h.aio_in_flight() > 0: h.poll(-1)
assert all(h.aio_command_completed(c) for c in cookies)
assert h.pread(4096000, 0) == b''.join(bytes([i % 251]) * 4096 for i in range(1000))";
    nbdsh(bed, script);
}

fn nbdsh_reads_without_structured_replies(bed: &Bed) {
    let connect = format!("h.connect_uri({:?})", bed.uri);
    let script = "assert not h.get_structured_replies_negotiated()\n\
                  h.pwrite(b's' * 4096, 8192)\n\
                  assert h.pread(12288, 4096) == bytearray(4096) + b's' * 4096 + bytearray(4096)";
    let plain = "h.set_request_structured_replies(False)";
    run("nbdsh", &["-c", plain, "-c", &connect, "-c", script]);
}

fn nbdsh_uses_the_oldest_way_to_an_export(bed: &Bed) {
    // Without fixed newstyle a client has NBD_OPT_EXPORT_NAME and nothing else.
    let flags = "h.set_handshake_flags(0)";
    let connect = format!("h.connect_uri({:?})", bed.uri);
    let script = "h.pwrite(b'o' * 4096, 0); assert h.pread(4096, 0) == b'o' * 4096; h.flush()";
    run("nbdsh", &["-c", flags, "-c", &connect, "-c", script]);
}

fn nbdkit_passes_it_on(bed: &Bed) {
    let there = bed.data("there");
    run("nbdcopy", &["--flush", &there, &bed.uri]);
    let uri = format!("uri={}", bed.uri);
    let compare = format!("nbdcopy \"$uri\" - | cmp - {there}");
    run("nbdkit", &["-U", "-", "nbd", &uri, "--run", &compare]);
}
