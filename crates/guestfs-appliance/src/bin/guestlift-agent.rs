//! The appliance's `/init`.

fn main() {
    guestfs_appliance::agent::main(&std::env::args_os().collect::<Vec<_>>());
}
