//! The flags of a quota beside its limit.

use crate::channel::policy::quota::StreamQuota;

#[test]
fn a_flag_that_goes_leaves_the_limit_and_the_other_flag() {
    let quota = StreamQuota::new(2);
    quota.set_stalled(true);
    quota.set_one_at_a_time(true);
    assert!(!quota.acquire(), "the connection takes no bytes");
    quota.set_stalled(false);
    assert!(quota.acquire() && !quota.acquire(), "one at a time");
    quota.set_one_at_a_time(false);
    assert!(quota.acquire() && !quota.acquire(), "as many as the peer allows");
    quota.set_limit(3);
    assert!(quota.acquire() && quota.is_saturated(), "of which there is one more now");
    assert!(!quota.is_closed());
    quota.close();
    quota.set_limit(9);
    assert!(quota.is_closed() && !quota.acquire(), "no change opens it again");
}
