# From PVH's entry, in 32 bits without paging, to guest.rs in 64 bits with the first 4 GiB mapped as they are.
.section .note.pvh, "a", @note
    .long 4, 4, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start

.text
.code32
.globl start
start:
    cli
    mov $stack_end, %esp
    mov %ebx, %edi              # hvm_start_info
    movl $pdpt + 3, pml4
    mov $page_directories + 3, %eax
    xor %ecx, %ecx
1:  mov %eax, pdpt(, %ecx, 8)
    add $4096, %eax
    inc %ecx
    cmp $4, %ecx
    jne 1b
    mov $0x83, %eax             # present, writable, 2 MiB
    xor %ecx, %ecx
2:  mov %eax, page_directories(, %ecx, 8)
    add $0x200000, %eax
    inc %ecx
    cmp $2048, %ecx
    jne 2b
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x620, %eax             # PAE, and SSE
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax             # long mode
    wrmsr
    mov %cr0, %eax
    or $0x80000003, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long
.code64
long:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %edi, %edi
    call main
    ud2

.section .rodata
.balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

.bss
.balign 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
page_directories:
    .skip 4 * 4096
    .skip 65536
stack_end:
