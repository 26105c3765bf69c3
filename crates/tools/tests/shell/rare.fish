is-config
run
is-config
ping-daemon
filesystem-available ext4
filesystem-available nonsense
part-get-mbr-part-type /dev/sda 1
part-init /dev/sda mbr
part-add /dev/sda p 2048 40959
part-add /dev/sda e 40960 -1
part-add /dev/sda l 43008 63487
part-get-mbr-part-type /dev/sda 1
part-get-mbr-part-type /dev/sda 2
part-get-mbr-part-type /dev/sda 5
mke2fs /dev/sda1 blocksize:1024 label:small fstype:ext2 uuid:01234567-89ab-cdef-0123-456789abcdef
vfs-type /dev/sda1
vfs-label /dev/sda1
vfs-uuid /dev/sda1
mount /dev/sda1 /
write /a "0123456789"
write /b "0123456789"
equal /a /b
pwrite /a "xyz" 4
cat /a
pwrite /b "end" 12
strings /b
filesize /b
equal /a /b
umount /
mkswap-L swapped /dev/sda1
vfs-label /dev/sda1
mkswap-U 01234567-89ab-cdef-0123-456789abcdee /dev/sda1
vfs-uuid /dev/sda1
is-zero-device /dev/sda5
zero-device /dev/sda1
is-zero-device /dev/sda1
