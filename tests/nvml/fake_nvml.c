/* A libnvidia-ml.so.1 for tests: the functions that nvidia-ml-py and Ray call, answered from a text file.
 *
 * The file is named by FAKE_NVML and read anew at each nvmlInit, one GPU a line:
 *   UUID TOTAL_MIB FREE_MIB PIDS        PIDS: comma-separated, or "-"
 * A line "fail" makes nvmlInit fail as a broken driver does. Layouts are those of nvml.h, driver branch 580.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int status;
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT = 7, UNKNOWN = 999 };

typedef struct { char uuid[64]; unsigned long long total, free; int pids[16]; unsigned count; } gpu;
static gpu gpus[16];
static unsigned num_gpus;

static status read_file(void) {
  const char *path = getenv("FAKE_NVML");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[512], pids[256];
  num_gpus = 0;
  if (!file) return UNKNOWN;
  while (num_gpus < 16 && fgets(line, sizeof line, file)) {
    gpu *g = &gpus[num_gpus];
    long long total, free_mib;
    if (!strncmp(line, "fail", 4)) { fclose(file); return UNKNOWN; }
    if (sscanf(line, "%63s %lld %lld %255s", g->uuid, &total, &free_mib, pids) != 4) continue;
    g->total = (unsigned long long)total << 20;
    g->free = (unsigned long long)free_mib << 20;
    g->count = 0;
    for (char *p = strtok(pids, ","); p && g->count < 16; p = strtok(NULL, ","))
      if (strcmp(p, "-")) g->pids[g->count++] = atoi(p);
    num_gpus++;
  }
  fclose(file);
  return OK;
}

status nvmlInit_v2(void) { return read_file(); }
status nvmlInitWithFlags(unsigned flags) { (void)flags; return read_file(); }
status nvmlInit(void) { return read_file(); }
status nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(status code) { return code == NOT_SUPPORTED ? "Not Supported" : "Unknown Error"; }

status nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "580.65"); return OK; }
status nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13020; return OK; }
status nvmlSystemGetCudaDriverVersion(int *version) { *version = 13020; return OK; }

status nvmlDeviceGetCount_v2(unsigned *count) { *count = num_gpus; return OK; }
status nvmlDeviceGetCount(unsigned *count) { *count = num_gpus; return OK; }
status nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  if (index >= num_gpus) return INVALID;
  *handle = &gpus[index];
  return OK;
}
status nvmlDeviceGetHandleByIndex(unsigned index, void **handle) { return nvmlDeviceGetHandleByIndex_v2(index, handle); }
status nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
  snprintf(text, length, "%s", ((gpu *)handle)->uuid);
  return OK;
}
status nvmlDeviceGetName(void *handle, char *text, unsigned length) {
  snprintf(text, length, "NVIDIA Fake of %s", ((gpu *)handle)->uuid);
  return OK;
}

struct memory_v1 { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
status nvmlDeviceGetMemoryInfo(void *handle, struct memory_v1 *m) {
  gpu *g = handle;
  m->total = g->total; m->free = g->free; m->used = g->total - g->free;
  return OK;
}
status nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *m) {
  gpu *g = handle;
  m->total = g->total; m->reserved = 0; m->free = g->free; m->used = g->total - g->free;
  return OK;
}

status nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
  (void)handle; *major = 9; *minor = 0;
  return OK;
}
struct utilization { unsigned gpu, memory; };
status nvmlDeviceGetUtilizationRates(void *handle, struct utilization *u) {
  (void)handle; u->gpu = 37; u->memory = 5;
  return OK;
}
status nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
  (void)handle; (void)sensor; *celsius = 41;
  return OK;
}
status nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) { (void)handle; *milliwatts = 71500; return OK; }
status nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *count) {
  (void)handle; (void)kind; (void)counter; *count = 2;
  return OK;
}
status nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
  (void)handle; *current = 0; *pending = 0;
  return OK;
}

struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
status nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *infos) {
  gpu *g = handle;
  if (*count < g->count) { *count = g->count; return INSUFFICIENT; }
  for (unsigned i = 0; i < g->count; i++) {
    infos[i].pid = (unsigned)g->pids[i];
    infos[i].memory = 1ull << 30;
    infos[i].gpu_instance = infos[i].compute_instance = 0xFFFFFFFF;
  }
  *count = g->count;
  return OK;
}
