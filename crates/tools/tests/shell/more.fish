# What one asks less often of a guest that is only looked at.
run
mount-ro /dev/sda1 /
echo glob
glob-expand /srv/*
glob-expand /e?c/host* directoryslash:false
glob cat /etc/host*
glob vfs-type /dev/sda?
-glob cat /none/*
echo bytes
hexdump /etc/motd
hexdump /usr/bin/ls
pread /srv/numbers 5 2
is-zero /srv/empty
is-zero /srv/open
file /etc/motd
file /srv
file /srv/absolute
file /usr/bin/ls
echo devices
nr-devices
device-index /dev/sda
canonical-device-name /dev/vda1
is-lv /dev/sda1
is-whole-device /dev/sda
is-whole-device /dev/sda1
findfs-label swap
findfs-uuid 0fa13c9e-3e2b-4c55-9d7e-0123456789ab
pread-device /dev/sda 2 510 | od -An -tx1
is-zero-device /dev/sda2
