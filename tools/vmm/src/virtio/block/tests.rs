use super::*;
use crate::bus::Registers;
use crate::virtio::testing::{Driver, INDIRECT, NEXT, Piece, WRITE};
use proptest::prelude::*;
use vmm_sys_util::tempfile::TempFile;

/// Sectors of the disk.
const SECTORS: u64 = 64;
const FLUSHES: u64 = 1 << VIRTIO_BLK_F_FLUSH;

fn disk(read_only: bool) -> (Driver, File) {
    disk_of(SECTORS, read_only)
}

fn disk_of(sectors: u64, read_only: bool) -> (Driver, File) {
    let mut file = TempFile::new().unwrap().into_file();
    let contents: Vec<u8> = (0..sectors * SECTOR).map(|at| (at / 7) as u8).collect();
    file.write_all(&contents).unwrap();
    let same = file.try_clone().unwrap();
    let mut driver = Driver::new(|counters| Block::new(file, read_only, counters).unwrap());
    driver.begin(FLUSHES);
    (driver, same)
}

fn header(driver: &mut Driver, kind: u32, sector: u64) -> Piece {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.put(&header)
}

/// Makes a request, and returns the status and the bytes that were written.
fn request(
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    out: &[Piece],
    into: &[Piece],
) -> (u32, u32) {
    let header = header(driver, kind, sector);
    let status = driver.put(&[0xff]);
    driver.offer(0, &[&[header], out].concat(), &[into, &[status]].concat());
    driver.serve(0);
    let (_, written) = driver.used(0).unwrap();
    (driver.bytes(status)[0].into(), written)
}

#[test]
fn what_it_says_of_itself() {
    let (driver, _) = disk(true);
    let mut config = [0; 16];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[8..12], SIZE_MAX.to_le_bytes());
    assert_eq!(config[12..], SEG_MAX.to_le_bytes());
    assert_eq!(driver.load(0x10) & 1 << VIRTIO_BLK_F_RO, 1 << VIRTIO_BLK_F_RO);
    let (driver, _) = disk(false);
    assert_eq!(driver.load(0x10) & 1 << VIRTIO_BLK_F_RO, 0);
}

#[test]
fn pieces_of_any_size() {
    let (mut driver, _) = disk(false);
    let whole = driver.room(1024);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 3, &[], &[whole]), (0, 1025));
    let whole = driver.bytes(whole);
    let pieces = [1, 510, 0, 3, 510].map(|bytes| driver.room(bytes));
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 3, &[], &pieces), (0, 1025));
    let together: Vec<u8> = pieces.iter().flat_map(|&piece| driver.bytes(piece)).collect();
    assert_eq!(together, whole);
    // The header in two pieces, the data behind it in the second.
    let header = header(&mut driver, VIRTIO_BLK_T_OUT, 9);
    let second = driver.put(&[[0; 6].as_slice(), &[5; 512]].concat());
    let first = Piece { bytes: 10, ..header };
    driver.memory_write(second.address, &driver.bytes(header)[10..]);
    let status = driver.put(&[0xff]);
    driver.offer(0, &[first, second], &[status]);
    driver.serve(0);
    assert!(driver.used(0).is_some_and(|(_, written)| written == 1));
    assert_eq!(driver.bytes(status), [0]);
    let room = driver.room(512);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 9, &[], &[room]), (0, 513));
    assert_eq!(driver.bytes(room), [5; 512]);
}

#[test]
fn what_fails() {
    let (mut driver, file) = disk(true);
    let (sector, odd, large) = (driver.room(512), driver.room(511), driver.room(128 << 10));
    let io = VIRTIO_BLK_S_IOERR;
    let mut status =
        |kind, at, out: &[Piece], into: &[Piece]| request(&mut driver, kind, at, out, into).0;
    for (at, into) in [
        (SECTORS, sector),
        (SECTORS - 1, Piece { bytes: 1024, ..sector }),
        (u64::MAX, sector),
        (u64::MAX / 512, sector),
        (0, odd),
        (0, large),
    ] {
        assert_eq!(status(VIRTIO_BLK_T_IN, at, &[], &[into]), io, "{at}");
    }
    assert_eq!(status(VIRTIO_BLK_T_OUT, 0, &[sector], &[]), io);
    assert_eq!(status(VIRTIO_BLK_T_GET_ID, 0, &[], &[Piece { bytes: 19, ..sector }]), io);
    assert_eq!(status(VIRTIO_BLK_T_DISCARD, 0, &[sector], &[]), VIRTIO_BLK_S_UNSUPP);
    assert_eq!(status(u32::MAX, 0, &[], &[sector]), VIRTIO_BLK_S_UNSUPP);
    // Nothing is not too much.
    assert_eq!(status(VIRTIO_BLK_T_IN, SECTORS, &[], &[]), VIRTIO_BLK_S_OK);
    assert_eq!(status(VIRTIO_BLK_T_FLUSH, 0, &[], &[]), VIRTIO_BLK_S_OK);
    // A file that has become shorter.
    file.set_len(SECTOR).unwrap();
    assert_eq!(status(VIRTIO_BLK_T_IN, 1, &[], &[sector]), io);
    assert_eq!(status(VIRTIO_BLK_T_IN, 0, &[], &[sector]), VIRTIO_BLK_S_OK);
    assert_eq!(driver.errors(), 11);
    assert!(!driver.needs_reset());
}

#[test]
fn requests_have_their_limits() {
    let (mut driver, _) = disk_of(2048, false);
    let mut read = |bytes: u32, count: usize| {
        let piece = Piece { bytes, ..driver.room(bytes as usize) };
        request(&mut driver, VIRTIO_BLK_T_IN, 0, &[], &vec![piece; count]).0
    };
    assert_eq!(read(SIZE_MAX, 1), VIRTIO_BLK_S_OK);
    assert_eq!(read(SIZE_MAX + 512, 1), VIRTIO_BLK_S_IOERR);
    assert_eq!(read(512, SEG_MAX as usize), VIRTIO_BLK_S_OK);
    assert_eq!(read(512, SEG_MAX as usize + 1), VIRTIO_BLK_S_IOERR);
}

#[test]
fn tables_of_descriptors_have_the_same_limits() {
    let (mut driver, _) = disk_of(64 << 10, false);
    let mut read = |bytes: u32, count: u16| {
        let header = header(&mut driver, VIRTIO_BLK_T_IN, 0);
        let status = driver.put(&[0xff]);
        let room = driver.room(0);
        let mut table = Driver::descriptor(header.address, header.bytes, NEXT, 1).to_vec();
        for n in 0..count {
            table.extend(Driver::descriptor(room.address, bytes, WRITE | NEXT, n + 2));
        }
        table.extend(Driver::descriptor(status.address, 1, WRITE, 0));
        let table = driver.put(&table);
        driver.describe(0, 0, Driver::descriptor(table.address, table.bytes, INDIRECT, 0));
        driver.make_available(0, 0);
        driver.serve(0);
        let (_, written) = driver.used(0).unwrap();
        (u32::from(driver.bytes(status)[0]), written)
    };
    let most = SEG_MAX * SIZE_MAX;
    assert_eq!(read(SIZE_MAX, SEG_MAX as u16), (VIRTIO_BLK_S_OK, most + 1));
    assert_eq!(read(SIZE_MAX, SEG_MAX as u16 + 1), (VIRTIO_BLK_S_IOERR, 1));
    assert_eq!(read(2 << 20, 1), (VIRTIO_BLK_S_IOERR, 1));
    assert_eq!(read(1 << 20, 200), (VIRTIO_BLK_S_IOERR, 1));
}

#[test]
fn its_name() {
    let (mut driver, _) = disk(false);
    let name = driver.room(20);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[], &[name]), (0, 21));
    assert_eq!(driver.bytes(name), *b"device\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn requests_without_a_header_or_a_place_for_the_status() {
    for (bytes, into) in [(15, 1), (0, 1), (16, 0)] {
        let (mut driver, _) = disk(false);
        let (header, status) = (driver.room(bytes), driver.room(into));
        let writable = if into == 0 { vec![] } else { vec![status] };
        driver.offer(0, &[header], &writable);
        driver.serve(0);
        assert!(driver.needs_reset() && driver.interrupted(), "{bytes} {into}");
        // It stops until it is reset, and then it is as good as new.
        let room = driver.room(512);
        driver.offer(0, &[], &[room]);
        driver.serve(0);
        assert_eq!(driver.used(0), None);
        driver.begin(FLUSHES);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[], &[room]), (0, 513));
    }
}

#[test]
fn a_disk_is_one_machines() {
    let path = TempFile::new().unwrap();
    path.as_file().set_len(1 << 20).unwrap();
    let counters = || Arc::new(DeviceCounters::new("block0".to_owned()));
    let open = |read_only| Block::open(path.as_path(), read_only, counters());
    let first = open(false).unwrap();
    assert!(open(false).is_err() && open(true).is_err());
    drop(first);
    let readers = (open(true).unwrap(), open(true).unwrap());
    assert!(open(false).is_err());
    drop(readers);
    path.as_file().set_len(511).unwrap();
    assert!(open(false).is_err());
}

/// A request of a test.
#[derive(Clone, Debug)]
enum Request {
    Read { sector: u64, cuts: Vec<usize> },
    Write { sector: u64, cuts: Vec<usize>, byte: u8 },
    Flush,
}

fn requests() -> impl Strategy<Value = Request> {
    // Sizes of pieces, which often make whole sectors and may go beyond the end.
    let cuts =
        || prop::collection::vec(prop_oneof![Just(512_usize), Just(256), 0_usize..1024], 0..6);
    prop_oneof![
        (0..SECTORS + 2, cuts()).prop_map(|(sector, cuts)| Request::Read { sector, cuts }),
        (0..SECTORS + 2, cuts(), any::<u8>()).prop_map(|(sector, cuts, byte)| Request::Write {
            sector,
            cuts,
            byte
        }),
        Just(Request::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_does_what_a_model_does(requests in prop::collection::vec(requests(), 1..60)) {
        let (mut driver, mut file) = disk(false);
        let mut model = vec![0; (SECTORS * SECTOR) as usize];
        file.rewind().unwrap();
        file.read_exact(&mut model).unwrap();
        for asked in requests {
            let range = |sector: u64, cuts: &[usize]| {
                let (at, bytes) = ((sector * SECTOR) as usize, cuts.iter().sum::<usize>());
                let fits = bytes % SECTOR as usize == 0 && at + bytes <= model.len();
                fits.then_some(at..at + bytes)
            };
            match asked {
                Request::Read { sector, cuts } => {
                    let pieces: Vec<_> = cuts.iter().map(|&bytes| driver.room(bytes)).collect();
                    let (status, _) = request(&mut driver, VIRTIO_BLK_T_IN, sector, &[], &pieces);
                    match range(sector, &cuts) {
                        Some(range) => {
                            let got: Vec<_> =
                                pieces.iter().flat_map(|&piece| driver.bytes(piece)).collect();
                            prop_assert_eq!((status, &got[..]), (0, &model[range]));
                        }
                        None => prop_assert_eq!(status, VIRTIO_BLK_S_IOERR),
                    }
                }
                Request::Write { sector, cuts, byte } => {
                    let pieces: Vec<_> =
                        cuts.iter().map(|&bytes| driver.put(&vec![byte; bytes])).collect();
                    let (status, written) =
                        request(&mut driver, VIRTIO_BLK_T_OUT, sector, &pieces, &[]);
                    prop_assert_eq!(written, 1);
                    match range(sector, &cuts) {
                        Some(range) => {
                            prop_assert_eq!(status, 0);
                            model[range].fill(byte);
                        }
                        None => prop_assert_eq!(status, VIRTIO_BLK_S_IOERR),
                    }
                }
                Request::Flush => {
                    prop_assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[], &[]), (0, 1));
                }
            }
        }
        let mut contents = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut contents).unwrap();
        prop_assert!(contents == model);
    }
}
