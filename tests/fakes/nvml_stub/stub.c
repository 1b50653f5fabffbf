/* A stand-in for libnvidia-ml.so.1 whose GPUs live in a memory-mapped file that a test writes.
 *
 * The file is rows of BLOCK 64-bit words: row 0 is the header, row i + 1 is GPU i. Word numbers come from words.h,
 * which stub.py writes, so that both sides share one list. A device handle is the address of the GPU's row.
 * Every function first looks at its own fault word: upper half = milliseconds to hang, lower half = code to answer.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "words.h"

typedef volatile uint64_t word;
typedef word *nvmlDevice_t;
typedef int nvmlReturn_t;

static word *state;
static int inited;

static word *header(void) { return state; }
static word *row(unsigned gpu) { return state + (uint64_t)BLOCK * (gpu + 1); }

static void nap_ms(uint64_t ms) {
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* A hang ends when its time is up or when the test changes the fault word. */
static int fault(word *w) {
    uint64_t set = *w;
    for (uint64_t left = set >> 32; left && *w == set; left -= left < 2 ? left : 2) nap_ms(2);
    return (int)(set & 0xffffffff);
}

static int known(nvmlDevice_t d) {
    return d && d > state && (uint64_t)(d - state) <= header()[COUNT] * (uint64_t)BLOCK;
}

#define LIBRARY(fn)                                                   \
    do {                                                              \
        if (!inited) return 1;                                        \
        __sync_fetch_and_add(&header()[CALLS], 1);                    \
        int f_ = fault(&header()[fn]);                                \
        if (f_) return f_;                                            \
    } while (0)
#define GATE(fn)                                                      \
    do {                                                              \
        if (!inited) return 1;                                        \
        if (!known(d)) return 2;                                      \
        __sync_fetch_and_add(&header()[CALLS], 1);                    \
        int f_ = fault(&d[F_ALL]);                                    \
        if (f_) return f_;                                            \
        f_ = fault(&d[fn]);                                           \
        if (f_) return f_;                                            \
    } while (0)

static int map_state(void) {
    const char *path = getenv("WATTBALANCE_NVML_STUB");
    int fd = path ? open(path, O_RDWR) : -1;
    struct stat st;
    if (fd < 0) return 9;
    if (fstat(fd, &st)) return 9;
    void *at = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED) return 9;
    state = at;
    return 0;
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!state && map_state()) return 9;
    int f = fault(&header()[F_INIT]);
    if (f) return f;
    __sync_fetch_and_add(&inited, 1);
    return 0;
}
nvmlReturn_t nvmlShutdown(void) {
    if (!inited) return 1;
    int f = fault(&header()[F_SHUTDOWN]);
    if (f) return f;
    __sync_fetch_and_sub(&inited, 1);
    return 0;
}
const char *nvmlErrorString(nvmlReturn_t r) { return r == 3 ? "Not Supported" : "stub error"; }

static void text(char *out, unsigned size, word *from, unsigned words) {
    char all[256];
    for (unsigned i = 0; i < words; i++) ((uint64_t *)all)[i] = from[i];
    all[words * 8 - 1] = 0;
    snprintf(out, size, "%s", all);
}
static void uuid_of(nvmlDevice_t d, char *out, unsigned size) {
    snprintf(out, size, "GPU-00000000-0000-4000-8000-%012llx", (unsigned long long)d[UUID]);
}
static void bus_id_of(nvmlDevice_t d, char *out, unsigned size) {
    snprintf(out, size, "00000000:%02X:00.0", (unsigned)d[PCI_BUS]);
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned size) {
    LIBRARY(F_DRIVER_VERSION);
    text(out, size, &header()[DRIVER], 4);
    return 0;
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *out) {
    LIBRARY(F_COUNT);
    *out = (unsigned)header()[COUNT];
    return 0;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
    LIBRARY(F_HANDLE);
    if (index >= header()[COUNT]) return 2;
    nvmlDevice_t d = row(index);
    GATE(F_HANDLE_BY_INDEX);
    *out = d;
    return 0;
}
static nvmlReturn_t find(const char *want, nvmlDevice_t *out, void (*name)(nvmlDevice_t, char *, unsigned)) {
    char have[96];
    for (unsigned i = 0; i < header()[COUNT]; i++) {
        name(row(i), have, sizeof have);
        if (!strcmp(have, want)) {
            *out = row(i);
            return 0;
        }
    }
    return 6;
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out) {
    LIBRARY(F_HANDLE);
    return find(uuid, out, uuid_of);
}
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *out) {
    LIBRARY(F_HANDLE);
    return find(id, out, bus_id_of);
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *out, unsigned size) {
    GATE(F_UUID);
    uuid_of(d, out, size);
    return 0;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *out, unsigned size) {
    GATE(F_NAME);
    text(out, size, &d[NAME], 8);
    return 0;
}
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, pci_t *out) {
    GATE(F_PCI);
    memset(out, 0, sizeof *out);
    out->bus = (unsigned)d[PCI_BUS];
    bus_id_of(d, out->bus_id, sizeof out->bus_id);
    memcpy(out->legacy, out->bus_id + 4, 12);
    return 0;
}

#define GET_U32(symbol, fn, field)                      \
    nvmlReturn_t symbol(nvmlDevice_t d, unsigned *o) {  \
        GATE(fn);                                       \
        *o = (unsigned)d[field];                        \
        return 0;                                       \
    }
#define GET_U64(symbol, fn, field)                                \
    nvmlReturn_t symbol(nvmlDevice_t d, unsigned long long *o) {  \
        GATE(fn);                                                 \
        *o = d[field];                                            \
        return 0;                                                 \
    }
GET_U32(nvmlDeviceGetPowerUsage, F_POWER, POWER_MW)
GET_U32(nvmlDeviceGetPowerManagementLimit, F_LIMIT_REQUESTED, LIMIT_REQUESTED_MW)
GET_U32(nvmlDeviceGetPowerManagementDefaultLimit, F_LIMIT_DEFAULT, LIMIT_DEFAULT_MW)
GET_U64(nvmlDeviceGetTotalEnergyConsumption, F_ENERGY, ENERGY_MJ)
GET_U64(nvmlDeviceGetCurrentClocksEventReasons, F_EVENT_REASONS, THROTTLE)
GET_U64(nvmlDeviceGetCurrentClocksThrottleReasons, F_THROTTLE_REASONS, THROTTLE)
GET_U64(nvmlDeviceGetSupportedEventTypes, F_EVENT_TYPES, EVENT_TYPES)

/* A cap set out of band holds the enforced limit down, never the requested one. */
static unsigned enforced_mw(nvmlDevice_t d) {
    uint64_t cap = d[OUT_OF_BAND_CAP_MW], requested = d[LIMIT_REQUESTED_MW];
    return (unsigned)(cap && cap < requested ? cap : requested);
}
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t d, unsigned *o) {
    GATE(F_LIMIT);
    *o = enforced_mw(d);
    return 0;
}
nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t d, unsigned *low, unsigned *high) {
    GATE(F_CONSTRAINTS);
    *low = (unsigned)d[LIMIT_MIN_MW];
    *high = (unsigned)d[LIMIT_MAX_MW];
    return 0;
}
static nvmlReturn_t set_limit(nvmlDevice_t d, unsigned mw) {
    if (mw < d[LIMIT_MIN_MW] || mw > d[LIMIT_MAX_MW]) return 2;
    d[LIMIT_REQUESTED_MW] = mw;
    return 0;
}
nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t d, unsigned mw) {
    GATE(F_SET_LIMIT);
    __sync_fetch_and_add(&d[SETS], 1);
    return d[IGNORE_SETS] ? 0 : set_limit(d, mw);
}
/* powerScope is one byte in nvml.h, followed by padding. */
typedef struct {
    unsigned version;
    unsigned char scope;
    unsigned mw;
} power_value_t;
nvmlReturn_t nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice_t d, power_value_t *v) {
    GATE(F_SET_LIMIT);
    if (v->version != 0x0200000C) return 25;
    if (v->scope) return 3;
    __sync_fetch_and_add(&d[SETS], 1);
    return d[IGNORE_SETS] ? 0 : set_limit(d, v->mw);
}

typedef struct {
    unsigned gpu, memory;
} utilization_t;
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, utilization_t *o) {
    GATE(F_UTILISATION);
    if (d[MIG]) return 3;
    o->gpu = (unsigned)d[UTIL_PCT];
    o->memory = (unsigned)d[MEM_UTIL_PCT];
    return 0;
}
typedef struct {
    unsigned long long total, free, used;
} memory_v1_t;
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, memory_v1_t *o) {
    GATE(F_MEMORY);
    o->total = d[MEM_TOTAL];
    o->used = d[MEM_USED] + d[MEM_RESERVED];
    o->free = o->total - o->used;
    return 0;
}
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2_t;
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, memory_v2_t *o) {
    GATE(F_MEMORY_V2);
    if (o->version != 0x02000028) return 25;
    o->total = d[MEM_TOTAL];
    o->reserved = d[MEM_RESERVED];
    o->used = d[MEM_USED];
    o->free = o->total - o->used - o->reserved;
    return 0;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t d, unsigned sensor, unsigned *o) {
    GATE(F_TEMPERATURE);
    if (sensor) return 2;
    *o = (unsigned)d[TEMP_C];
    return 0;
}
typedef struct {
    unsigned version, sensor;
    int celsius;
} temperature_t;
nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t d, temperature_t *o) {
    GATE(F_TEMPERATURE_V);
    if (o->version != 0x0100000C) return 25;
    o->celsius = (int)d[TEMP_C];
    return 0;
}
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t d, unsigned type, unsigned *o) {
    GATE(F_CLOCK);
    if (type > 3) return 2;
    *o = (unsigned)(type == 2 ? d[MEM_CLOCK_MHZ] : d[SM_CLOCK_MHZ]);
    return 0;
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t d, unsigned kind, unsigned counter, unsigned long long *o) {
    GATE(F_ECC);
    if (kind > 1 || counter > 1) return 2;
    *o = kind ? d[ECC_UNCORRECTED] : d[ECC_CORRECTED];
    return 0;
}
nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t d, unsigned *cor, unsigned *unc, unsigned *pend, unsigned *fail) {
    GATE(F_REMAPPED);
    *cor = (unsigned)d[REMAPPED_CORRECTABLE];
    *unc = (unsigned)d[REMAPPED_UNCORRECTABLE];
    *pend = *fail = 0;
    return 0;
}
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned *current, unsigned *pending) {
    GATE(F_MIG);
    *current = *pending = (unsigned)d[MIG];
    return 0;
}

/* As many links as the field says, all to one peer: a switch that all GPUs share, or another GPU. */
#define LINKS_OF_THE_MODEL 12
nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t d, unsigned link, unsigned *o) {
    GATE(F_NVLINK_STATE);
    if (link >= LINKS_OF_THE_MODEL) return 2;
    *o = link < d[NVLINKS];
    return 0;
}
nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t d, unsigned link, pci_t *out) {
    GATE(F_NVLINK_REMOTE);
    if (link >= d[NVLINKS]) return 2;
    memset(out, 0, sizeof *out);
    if (d[NVLINK_PEER])
        bus_id_of(row((unsigned)d[NVLINK_PEER] - 1), out->bus_id, sizeof out->bus_id);
    else
        snprintf(out->bus_id, sizeof out->bus_id, "00000000:C0:00.0");
    return 0;
}
nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t d, nvmlDevice_t other, unsigned *o) {
    GATE(F_ANCESTOR);
    if (!known(other)) return 2;
    *o = d[NUMA_NODE] != other[NUMA_NODE] ? 50 : d[PCIE_SWITCH] != other[PCIE_SWITCH] ? 40 : 10;
    return 0;
}
nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t d, nvmlDevice_t other, unsigned caps, unsigned *o) {
    GATE(F_P2P);
    if (!known(other) || caps != 2) return 2;
    int joined = d[NVLINK_PEER] ? row((unsigned)d[NVLINK_PEER] - 1) == other : !other[NVLINK_PEER];
    unsigned status = (unsigned)(d[P2P_STATUS] ? d[P2P_STATUS] : other[P2P_STATUS]);
    *o = joined && d[NVLINKS] && other[NVLINKS] ? status : 5;
    return 0;
}
/* No processes: a test that needs some has to add them here first. */
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned *count, void *infos) {
    GATE(F_PROCESSES);
    (void)infos;
    *count = 0;
    return 0;
}

typedef struct {
    uint32_t id, scope;
    int64_t timestamp_us, latency_us;
    int32_t type, ret;
    uint64_t value;
} field_t;
_Static_assert(sizeof(field_t) == 40, "nvmlFieldValue_t is 40 bytes");

static int field(nvmlDevice_t d, field_t *f) {
    if (f->scope) return 3;
    f->type = 1;
    switch (f->id) {
        case 83:
            f->type = 3;
            f->value = d[ENERGY_MJ];
            return fault(&d[F_FIELD_ENERGY]);
        case 185: f->value = d[POWER_AVERAGE_MW]; return fault(&d[F_FIELD_POWER_AVERAGE]);
        case 186: f->value = d[POWER_INSTANT_MW]; return fault(&d[F_FIELD_POWER_INSTANT]);
        case 187: f->value = d[LIMIT_MIN_MW]; return 0;
        case 188: f->value = d[LIMIT_MAX_MW]; return 0;
        case 189: f->value = d[LIMIT_DEFAULT_MW]; return 0;
        case 190: f->value = enforced_mw(d); return 0;
        case 192: f->value = d[LIMIT_REQUESTED_MW]; return 0;
        default: return 3;
    }
}
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int count, field_t *fields) {
    GATE(F_FIELDS);
    for (int i = 0; i < count; i++) {
        /* What a failed field holds is not defined: leave something that hurts whoever does not look at ret. */
        fields[i].ret = field(d, &fields[i]);
        if (fields[i].ret) fields[i].value = 0xdeadbeef;
    }
    return 0;
}

typedef struct {
    uint64_t seen;
    uint64_t registered;
} event_set_t;
typedef struct {
    nvmlDevice_t device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} event_t;

nvmlReturn_t nvmlEventSetCreate(event_set_t **out) {
    LIBRARY(F_EVENT_SET);
    event_set_t *set = calloc(1, sizeof *set);
    if (!set) return 20;
    set->seen = header()[XID_SEQ];
    *out = set;
    return 0;
}
nvmlReturn_t nvmlEventSetFree(event_set_t *set) {
    free(set);
    return 0;
}
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, event_set_t *set) {
    GATE(F_REGISTER_EVENTS);
    if (types & ~d[EVENT_TYPES]) return 3;
    set->registered |= 1ull << ((d - state) / BLOCK - 1);
    __sync_fetch_and_add(&header()[LISTENERS], 1);
    return 0;
}
nvmlReturn_t nvmlEventSetWait_v2(event_set_t *set, event_t *out, unsigned timeout_ms) {
    LIBRARY(F_EVENT_WAIT);
    unsigned poll_ms = header()[EVENT_POLL_MS] ? (unsigned)header()[EVENT_POLL_MS] : 2;
    for (unsigned waited = 0;; waited += poll_ms) {
        while (set->seen < header()[XID_SEQ]) {
            word *event = header() + XIDS + 3 * (set->seen++ % XIDS_KEPT);
            if (!(set->registered >> event[0] & 1)) continue;
            memset(out, 0, sizeof *out);
            out->device = row((unsigned)event[0]);
            out->type = event[2];
            out->data = event[1];
            out->gpu_instance = out->compute_instance = 0xFFFFFFFF;
            return 0;
        }
        if (waited >= timeout_ms) return 10;
        nap_ms(poll_ms);
    }
}
