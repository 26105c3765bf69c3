//! XenServer / XCP-ng virtual appliances (XVA), modern and legacy.
#![forbid(unsafe_code)]
