//! The tour, which needs no server.

#[test]
fn the_tour_shows_every_framing() {
    let text = run_nbd::<&str>([]).ok().stdout;

    use crate::nbd::run_nbd;
    let text = String::from_utf8(text).expect("UTF-8");
    let count = |needle| text.matches(needle).count();
    assert_eq!(count("Read back 256 KiB, equal to what was written"), 3);
    assert_eq!(count("; 0 B of it came as holes"), 1);
    assert_eq!(count("; 128 KiB of it came as holes"), 2);
    // A hole of 5.5 GiB is two narrow extents, and one wide one.
    assert_eq!(count("14 narrow extents"), 1);
    assert_eq!(
        count("13 wide extents in one reply, the longest 5.5 GiB"),
        1
    );
    assert_eq!(count("S: NBD_REPLY_TYPE_BLOCK_STATUS_EXT"), 1);
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
}
