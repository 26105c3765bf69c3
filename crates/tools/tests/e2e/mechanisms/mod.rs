//! Guests of `scripts/recipe-guest`: each shows mechanisms that xen-create-image's own guests do not have.

mod families;
mod systems;
mod target;
mod volumes;
